"""The states of networks that are built or behave in other ways, and whether they read later tokens."""

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from helpers.models import tiny_config, word_tokenizer

from ntps.errors import NtpsError
from ntps.models import collect
from ntps.models.load import load_model
from ntps.models.representations import Representations
from ntps.models.states import StateReader, hidden_states, reads_later_tokens
from ntps.scoring import score

TEXTS = ["the film was good", "a dull story and worse", "we liked it", "red blue green old new long short cat"] * 6
IDS = torch.arange(10)[None]


def network_of(config, seed=0, head=True):
    from transformers import AutoModel, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (AutoModelForCausalLM if head else AutoModel).from_config(config).eval()


def load(network, **options):
    return load_model(network, tokenizer=word_tokenizer(), **options)


# Causality


def decoder(kind, *, both_ways, outliers=False, scale=1):
    """A tiny decoder whose attention reads later tokens or not, with two channels a hundred times larger or not.

    `scale` is that of all embeddings.
    """
    network = network_of(tiny_config(kind), head=False)
    if both_ways:
        for module in network.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
        network.config.is_causal = False
    with torch.no_grad():
        network.get_input_embeddings().weight[:, 3:5] *= 100 if outliers else 1
        network.get_input_embeddings().weight *= scale
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_both_ways_is_found_out_in_every_type(kind, outliers, dtype):
    model = load(decoder(kind, both_ways=False, outliers=outliers).to(dtype))
    assert model.causal
    network = decoder(kind, both_ways=True, outliers=outliers).to(dtype)
    assert reads_later_tokens(network, model.vocabulary, model.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attention_both_ways_is_found_out_where_the_embeddings_drown_it(kind, dtype):
    """At a thousand times the usual scale, what a block adds changes no digit of the states in bfloat16."""
    for both_ways in (False, True):
        network = decoder(kind, both_ways=both_ways, scale=1000).to(dtype)
        assert reads_later_tokens(network, 96, "cpu") is both_ways


def test_the_test_of_causality_leaves_nothing_behind(tiny_llama):
    network = load_model(tiny_llama).model
    hooks = [dict(module._forward_hooks) for module in network.modules()]
    assert not reads_later_tokens(network, 96, "cpu")
    assert [dict(module._forward_hooks) for module in network.modules()] == hooks


@pytest.mark.parametrize("flag", [{"is_causal": False}, {"use_bidirectional_attention": True}])
@pytest.mark.parametrize("random_weights", [False, True])
def test_a_configuration_that_says_so_is_refused_by_its_flag(tiny_llama, tmp_path, flag, random_weights):
    copied = shutil.copytree(tiny_llama, tmp_path / "both-ways")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **flag}))
    with pytest.raises(NtpsError, match=rf"both-ways \(llama\) attends to later tokens.*{next(iter(flag))}.*causal"):
        load_model(copied, random_weights=random_weights)


# Widths


@pytest.fixture(scope="module")
def two_widths():
    """An OPT of the kind of OPT-350m: a projection after the last block makes its states narrower."""
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=96, hidden_size=24, word_embed_proj_dim=8, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, do_layer_norm_before=False,
    )  # fmt: skip
    return load(network_of(config))


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_each_layer_has_its_own_width(two_widths, state_dtype, tmp_path):
    model = two_widths
    assert (model.widths, model.width) == ((24, 24, 8), 8)
    found = collect(model, TEXTS, state_dtype=state_dtype)
    assert [found.layer(layer).shape for layer in found.layers] == [(24, 24), (24, 24), (24, 8)]
    assert [tuple(found.next_token.layer(layer).C1.shape) for layer in found.layers] == [(24, 24), (24, 24), (8, 8)]
    ids = model.tokenize(TEXTS).ids
    alone = [[state[0].mean(0).numpy() for state in model.hidden_states(*model.pad([row]))] for row in ids]
    for layer in found.layers:
        wanted = np.stack([row[layer] for row in alone])
        np.testing.assert_allclose(found.layer(layer), wanted, atol=1e-5 if state_dtype == "float32" else 1e-3)
    again = Representations.load(found.save(tmp_path / "kept"))
    assert all(np.array_equal(again.layer(layer), found.layer(layer)) for layer in found.layers)
    last = collect(model, TEXTS, layers=-1, state_dtype=state_dtype)
    np.testing.assert_array_equal(last.layer(2), found.layer(2))
    np.testing.assert_allclose(last.next_token.layer(2).C0, found.next_token.layer(2).C0)


def test_two_widths_are_scored_as_each_alone(two_widths):
    labels = np.arange(24) % 2
    together = score(collect(two_widths, TEXTS), labels=labels, folds=0)
    for layer in (0, 2):
        alone = score(collect(two_widths, TEXTS, layers=layer), labels=labels, folds=0)
        assert alone[layer].ntps == pytest.approx(together[layer].ntps, abs=1e-9)
    with pytest.raises(NtpsError, match=r"k_u is 9.*between 1 and 8"):
        score(collect(two_widths, TEXTS), labels=labels, folds=0, k_u=9)


# What is returned


def test_the_last_layer_follows_the_norm_whatever_the_configuration_says(tiny_llama):
    plain = load_model(tiny_llama)
    network = network_of(plain.config)
    network.load_state_dict(load_model(tiny_llama, head=True).model.state_dict())
    network.config.tie_last_hidden_states = False
    network.model.config.tie_last_hidden_states = False
    with torch.no_grad():
        network.model.norm.weight *= 3
        plain.model.norm.weight *= 3
    for head in (False, True):
        states = load(network, head=head).hidden_states(IDS, torch.ones_like(IDS))
        for found, wanted in zip(states, plain.hidden_states(IDS, torch.ones_like(IDS)), strict=True):
            torch.testing.assert_close(found, wanted)


def test_gemma_3n_is_read_by_the_stream_that_its_blocks_predict_from():
    from transformers import Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=96, vocab_size_per_layer_input=96, hidden_size=24, hidden_size_per_layer_input=8, head_dim=6,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0], altup_num_inputs=3, altup_active_idx=1, laurel_rank=4, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=64,
    )  # fmt: skip
    network = network_of(config, head=False)
    with torch.no_grad():
        output = network(input_ids=IDS, output_hidden_states=True, use_cache=False)
    assert output.hidden_states[1].shape == (3, 1, 10, 24)
    model = load(network)
    states = model.hidden_states(IDS, torch.ones_like(IDS))
    assert (model.n_layers, model.width) == (3, 24)
    torch.testing.assert_close(states[1], output.hidden_states[1][1])
    torch.testing.assert_close(states[2], output.last_hidden_state)


class Odd(torch.nn.Module):
    """A network of someone's own code, which knows what `forward` names and returns what `answer` makes of its states.

    It is causal: a cumulative sum of embeddings.
    """

    def __init__(self, answer, *, embedding=True):
        super().__init__()
        self.config = tiny_config("llama")
        if embedding:
            self.embed = torch.nn.Embedding(96, 24)
        else:
            self.rows = torch.nn.Parameter(torch.randn(96, 24))
        self.answer = answer

    def get_input_embeddings(self):
        raise NotImplementedError

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        first = self.embed(input_ids) if hasattr(self, "embed") else self.rows[input_ids]
        return self.answer((first, first.cumsum(1), first.cumsum(1) * 2, first.cumsum(1) * 3))


def named(states):
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states)


def test_code_that_knows_no_use_cache_and_names_no_embedding_is_read():
    model = load(Odd(named))
    assert (model.n_layers, model.width, model.vocabulary) == (4, 24, 96)
    assert collect(model, TEXTS).layers == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("answer", "embedding", "words"),
    [
        (lambda states: states, True, r"Odd returns a plain tuple; a model whose forward takes output_hidden_states"),
        (lambda states: named((states[-1],)).__class__(last_hidden_state=states[-1]), True, r"without hidden_states"),
        (lambda states: named(states[1:]), True, r"returns 3 hidden states for as many blocks; the embedding output"),
        (lambda states: named(tuple(state[0] for state in states)), True, r"shape \(2, 24\) at layer 0 .* one state"),
        (lambda states: 1 / 0, True, r"fails on a text of two tokens \(ZeroDivisionError: division by zero\)"),
        (named, False, r"Odd has no embedding of tokens"),
    ],
)  # fmt: skip
def test_code_of_someone_s_own_is_refused_with_what_it_returns(answer, embedding, words):
    with pytest.raises(NtpsError, match=words) as caught:
        load(Odd(answer, embedding=embedding))
    assert "\n" not in str(caught.value)


def test_states_carry_gradients_and_leave_the_head_out(tiny_llama):
    model = load_model(tiny_llama, head=True)
    model.model.lm_head.forward = None  # would fail if it were run
    states = hidden_states(model.model, IDS, torch.ones_like(IDS))
    assert states[-1].requires_grad
    assert not model.hidden_states(IDS, torch.ones_like(IDS))[-1].requires_grad


# Layer by layer


def read(reader, ids, mask):
    """The states that a reader hands over, each checked to come once."""
    found = {}

    def take(index, state):
        assert index not in found
        found[index] = state.clone()

    reader.read(ids, mask, take)
    return [found[index] for index in range(len(reader.layers))]


def batch():
    ids = torch.arange(60).reshape(3, 20) % 96
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_states_read_layer_by_layer_are_those_of_the_network_bit_for_bit(kind, dtype):
    network = network_of(tiny_config(kind)).to(dtype)
    ids, mask = batch()
    with torch.inference_mode():
        wanted = hidden_states(network, ids, mask)
    for layers in (range(len(wanted)), (1,), (0, 2)):
        reader = StateReader(network, layers, 96, "cpu")
        assert reader.places is not None
        assert reader.n_layers == len(wanted)
        for state, layer in zip(read(reader, ids, mask), layers, strict=True):
            assert torch.equal(state, wanted[layer])


def test_states_of_earlier_layers_are_not_held():
    """What the network itself holds is left: its embeddings and the input of the block that runs."""
    config = tiny_config("llama")
    config.num_hidden_layers = 6
    ids, mask = batch()
    held, alive = [], []

    def take(_index, state):
        alive.append([reference() is not None for reference in held])
        held.append(weakref.ref(state))

    StateReader(network_of(config), range(7), 96, "cpu").read(ids, mask, take)
    assert len(alive) == 7
    assert not any(any(flags[1:-1]) for flags in alive), alive


@pytest.mark.parametrize("plant", ["late", "shared"])
def test_states_that_hooks_cannot_show_are_asked_for_at_once(plant):
    """A block that changes its output after the hook has seen it, and one block in the place of another."""
    network = network_of(tiny_config("llama"))
    if plant == "shared":
        network.model.layers[1] = network.model.layers[0]
    else:
        following = network.model.layers[1].forward
        network.model.layers[1].forward = lambda states, *rest, **more: following(states.mul_(1.5), *rest, **more)
    ids, mask = batch()
    reader = StateReader(network, range(4), 96, "cpu")
    assert reader.places is None
    with torch.inference_mode():
        wanted = hidden_states(network, ids, mask)
    assert all(map(torch.equal, read(reader, ids, mask), wanted))


def test_the_reader_leaves_no_hook_behind():
    network = network_of(tiny_config("llama"))
    network(IDS, output_hidden_states=True)  # transformers puts hooks of its own at the first time
    before = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in network.modules()]
    reader = StateReader(network, range(4), 96, "cpu")
    with pytest.raises(ZeroDivisionError):
        reader.read(*batch(), lambda index, state: 1 / 0)
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in network.modules()] == before
