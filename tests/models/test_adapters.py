"""Models with adapters: named as BASE+ADAPTER or by the adapter's directory, fingerprinted, never applied unasked."""

import json
import shutil

import numpy as np
import pytest
import torch

from ntps.errors import NtpsError
from ntps.models.load import has_language_model_head, load_model, model_fingerprint

IDS = torch.arange(10)[None]


def last(model):
    return model.hidden_states(IDS, torch.ones_like(IDS))[-1].numpy()


def make(base, folder, *, head, rank=2, scale=0.3, **options):
    """Write an adapter for a model with or without its head, whose factors are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    network = (AutoModelForCausalLM if head else AutoModel).from_pretrained(base)
    settings = {"r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wrapped = get_peft_model(network, LoraConfig(**settings)).eval()
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, scale)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(scope="module", params=[True, False], ids=["with head", "without head"])
def adapted(request, tiny_llama, tmp_path_factory):
    """An adapter's directory, and the last states of the network that it was made with."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    wrapped = make(tiny_llama, folder, head=request.param)
    with torch.no_grad():
        states = wrapped(input_ids=IDS, output_hidden_states=True).hidden_states[-1].numpy()
    return folder, states


@pytest.mark.parametrize("head", [False, True])
def test_a_base_and_an_adapter_are_named_together_or_by_the_adapter(tiny_llama, adapted, head, monkeypatch):
    folder, wanted = adapted
    bare = load_model(tiny_llama, head=head)
    together = f"{tiny_llama}+{folder}"
    for name in (together, folder):
        model = load_model(name, head=head)
        np.testing.assert_allclose(last(model), wanted, atol=1e-5)
        assert np.abs(last(model) - last(bare)).max() > 1e-2
        assert model.n_parameters == bare.n_parameters
        assert model.fingerprint == model_fingerprint(name) != bare.fingerprint
        assert model.source["adapter"] == str(folder)
        assert model.name == str(name)
        assert model.has_head is head
        assert has_language_model_head(name)
    monkeypatch.chdir(folder.parent)
    assert load_model(f"{tiny_llama}+adapter").fingerprint == load_model(together).fingerprint


def test_the_bundled_model_is_a_base_too(fake_miniworld, tiny_llama, adapted):
    model = load_model(f"miniworld-base+{adapted[0]}")
    np.testing.assert_allclose(last(model), adapted[1], atol=1e-5)
    assert model.fingerprint == model_fingerprint(f"{tiny_llama}+{adapted[0]}")


def test_the_fingerprint_covers_base_and_adapter(tiny_llama, tiny_llama_left, tmp_path):
    make(tiny_llama, tmp_path / "one", head=True)
    make(tiny_llama, tmp_path / "two", head=True, scale=0.2)
    names = [f"{base}+{tmp_path / adapter}" for base in (tiny_llama, tiny_llama_left) for adapter in ("one", "two")]
    assert len({model_fingerprint(name) for name in [tiny_llama, tiny_llama_left, *names]}) == 6
    config = tmp_path / "one" / "adapter_config.json"
    before = model_fingerprint(names[0])
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 8}))
    assert model_fingerprint(names[0]) != before


def test_random_weights_are_those_of_the_architecture(tiny_llama, adapted):
    alone, with_adapter = (load_model(name, random_weights=True, seed=1) for name in (tiny_llama, adapted[0]))
    np.testing.assert_array_equal(last(alone), last(with_adapter))
    assert alone.fingerprint == with_adapter.fingerprint


def test_a_base_beside_the_adapter_is_found(tiny_llama, tmp_path, adapted):
    folder = shutil.copytree(adapted[0], tmp_path / "run" / "adapter")
    shutil.copytree(tiny_llama, tmp_path / "run" / "base")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    np.testing.assert_allclose(last(load_model(folder)), adapted[1], atol=1e-5)


def test_an_adapter_beside_a_full_model_is_refused(tiny_llama, adapted, tmp_path):
    both = shutil.copytree(tiny_llama, tmp_path / "both")
    shutil.copytree(adapted[0], both, dirs_exist_ok=True)
    for name in (both, f"{both}+{adapted[0]}"):
        for load in (load_model, model_fingerprint):
            with pytest.raises(NtpsError, match=r"both holds a model and an adapter .*merged.*both\+ADAPTER"):
                load(name)
    np.testing.assert_allclose(last(load_model(f"{tiny_llama}+{both}")), adapted[1], atol=1e-5)


def prompt_tuning(tiny_llama, folder):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(network, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)


def damage(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"no weights \(adapter_model"),
        (
            lambda folder: damage(folder, "adapter_model.safetensors", b"x" * 90),
            r"adapter_model.safetensors is damaged",
        ),
        (lambda folder: damage(folder, "adapter_config.json", b"{"), r"adapter_config.json, line 1: not valid JSON"),
        (lambda folder: damage(folder, "adapter_config.json", b"{}"), r"names no base model; give both, as BASE\+"),
        (
            lambda folder: damage(folder, "adapter_config.json", b'{"base_model_name_or_path": "/not/there"}'),
            r"adapter whose base model /not/there is not there; give both",
        ),
        (
            lambda folder: damage(folder, "adapter_config.json", b'{"base_model_name_or_path": "nobody/base"}'),
            r"model 'nobody/base' cannot be loaded",
        ),
    ],
)
def test_adapters_that_are_not_whole(adapted, tmp_path, change, words, monkeypatch):
    monkeypatch.setattr("ntps._hub.reachable", lambda: False)
    folder = shutil.copytree(adapted[0], tmp_path / "adapter")
    change(folder)
    with pytest.raises(NtpsError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_added(tiny_llama, tiny_gpt2, adapted, tmp_path):
    prompt_tuning(tiny_llama, tmp_path / "prompts")
    make(tiny_llama, tmp_path / "wide", head=True, target_modules=["lm_head", "q_proj"])
    for name, words in (
        (f"{tiny_gpt2}+{adapted[0]}", r"tiny-gpt2\+.*: .*adapter"),
        (f"{tiny_llama}+{tmp_path / 'prompts'}", r"holds tokens .prompt learning., not weights"),
        (f"{tiny_llama}+{tmp_path / 'nope'}", r"nope is no directory with an adapter_config.json"),
        (f"{tiny_llama}+{adapted[0]}+{adapted[0]}", r"\+"),
        (f"{adapted[0]}+{adapted[0]}", r"is an adapter itself; give one base and one adapter"),
        (f"model.gguf+{adapted[0]}", r"cannot be added to a GGUF file"),
        (f"./nope+{adapted[0]}", r"\./nope: no such directory"),
        (f"+{adapted[0]}", r"name is empty"),
    ):
        with pytest.raises(NtpsError, match=words) as caught:
            load_model(name)
        assert "\n" not in str(caught.value)
    assert load_model(f"{tiny_llama}+{tmp_path / 'wide'}").n_layers == 4  # an adapted head is loaded and left out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "LoKrConfig"])
@pytest.mark.parametrize("head", [True, False])
def test_the_kin_of_lora(tiny_llama, tmp_path, kind, head):
    import peft
    from transformers import AutoModel, AutoModelForCausalLM

    network = (AutoModelForCausalLM if head else AutoModel).from_pretrained(tiny_llama)
    more = {"feedforward_modules": ["down_proj"]} if kind == "IA3Config" else {"r": 2, "init_weights": False}
    config = getattr(peft, kind)(target_modules=["k_proj", "down_proj"], **more)
    wrapped = peft.get_peft_model(network, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "ia3_" in name:
                parameter.mul_(2)
        wanted = wrapped(input_ids=IDS, output_hidden_states=True).hidden_states[-1].numpy()
    wrapped.save_pretrained(tmp_path)
    np.testing.assert_allclose(last(load_model(f"{tiny_llama}+{tmp_path}")), wanted, atol=1e-5)
    assert np.abs(last(load_model(tiny_llama)) - wanted).max() > 1e-2


def test_a_path_with_a_plus_is_a_path(tiny_llama, tmp_path):
    path = shutil.copytree(tiny_llama, tmp_path / "a+b")
    assert load_model(path).fingerprint == model_fingerprint(tiny_llama)
