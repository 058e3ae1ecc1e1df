"""Architectures of transformers, tiny and with random weights: each is scored and fine-tuned, or refused in a sentence.

They are built by `benchmarks.architectures`, which also writes the table of them.
"""

import csv
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ntps.errors import NtpsError
from ntps.finetune.adapters import target_names
from ntps.finetune.before_after import before_and_after
from ntps.finetune.train import fine_tune
from ntps.models.load import load_model
from ntps.models.states import StateReader, hidden_states

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import (  # noqa: E402
    NAMES,
    RESULTS,
    SETTINGS,
    VOCABULARY,
    check,
    tiny_config,
    tiny_task,
    tokenizer,
)

REFUSED = {  # encoders, and decoders that read several streams or both ways
    "bert": "encoder", "roberta": "encoder", "xlm": "encoder", "cpmant": "not causal", "xlnet": "not causal",
    "deepseek_v4": "one state per token",
}  # fmt: skip
# Their states are slices or permutations of what a module returns (CPM-Ant, Gemma 3n, ProphetNet, XLNet), are changed
# afterwards (XLM), or come from a norm that is called several times (nanochat).
AT_ONCE = ("cpmant", "gemma3n_text", "nanochat", "prophetnet", "xlm", "xlnet")
NOT_TRAINED = {"prophetnet": "PEFT cannot adapt"}
FEW = ("gemma3", "llama4_text", "mamba", "dots1", "opt")  # a vision tower, a router, Mamba, fused experts, two widths

pytestmark = pytest.mark.usefixtures("one_thread")


def as_expected(row):
    refused = REFUSED.get(row.architecture) or NOT_TRAINED.get(row.architecture)
    assert (row.score, row.lora) == (
        ("refused", "") if row.architecture in REFUSED else ("yes", "refused" if refused else "yes")
    ), row
    assert (refused or "") in row.sentence
    assert bool(row.sentence) is bool(refused)
    assert "\n" not in row.sentence
    assert bool(row.adapted) is (row.lora == "yes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("gemma3", "fc2: no text passes them"),
        ("llama4_text", "2 router: they return more than a tensor; 2 experts: their weights are fused into one tensor"),
        ("mamba", "2 out_proj: PEFT refuses them in Mamba layers"),
        ("dots1", "down_proj: PEFT takes their names for fused experts"),
        ("opt", ""),
    ],
)
def test_what_cannot_be_adapted_is_left_out_and_named(name, left_out):
    row = check(name)
    as_expected(row)
    assert left_out in row.left_out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dots1", "mamba"])
def test_an_adapter_is_read_again_by_its_directory(name, tmp_path):
    """PEFT changes names and modules of some architectures when it reads an adapter; ours must come back as it was."""
    import torch

    config = tiny_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", tokenizer=tokenizer())
    tuned = fine_tune(model, *tiny_task().split(0.25), settings=SETTINGS, progress=False)
    with torch.no_grad():
        for key, parameter in tuned.network.named_parameters():
            if "lora_B" in key:
                parameter.fill_(0.05)
    tuned.save(tmp_path / "adapter")
    ids = torch.arange(10)[None]
    wanted = tuned.merge().hidden_states(ids, torch.ones_like(ids))[-1]
    found = load_model(tmp_path / "adapter", tokenizer=tokenizer()).hidden_states(ids, torch.ones_like(ids))[-1]
    torch.testing.assert_close(found, wanted)
    assert (found - model.hidden_states(ids, torch.ones_like(ids))[-1]).abs().max() > 1e-3


def test_a_target_that_cannot_be_adapted_is_answered_with_the_reason():
    network = AutoModelForCausalLM.from_config(tiny_config("mamba")).backbone
    with pytest.raises(
        NtpsError, match=r"'out_proj' cannot be adapted \(PEFT refuses them .*\); choose among: in_proj"
    ):
        target_names(network, ("out_proj",))


def test_the_result_says_what_was_adapted():
    model = load_model(AutoModelForCausalLM.from_config(tiny_config("llama4_text")), tokenizer=tokenizer(), head=True)
    result = before_and_after(model, tiny_task(), settings=SETTINGS, folds=0, analyses=(), progress=False)
    adapted = result.to_dict()["provenance"]["adapted"]
    assert adapted["modules"] == dict.fromkeys(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 2
    )
    assert adapted["left_out"]["they return more than a tensor"] == {"router": 2}
    assert "Adapters went to 14 modules (q_proj" in result.sentence()
    assert "router (they return more than a tensor)" in result.sentence()
    assert None not in (result.before.next_token_loss, result.after.next_token_loss)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FEW])
def test_every_architecture_is_scored_and_fine_tuned_or_refused(name):
    as_expected(check(name))


def check_reader(name):
    """States read layer by layer are those of the network, bit for bit; `AT_ONCE` says where hooks cannot read them."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
        ids = torch.randint(0, VOCABULARY, (3, 23))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        wanted = hidden_states(network, ids, mask)
    reader, found = StateReader(network, range(len(wanted)), VOCABULARY, "cpu"), []
    reader.read(ids, mask, lambda index, state: found.append((index, state.clone())))
    assert (reader.places is None) is (name in AT_ONCE)
    assert sorted(index for index, _ in found) == list(range(len(wanted)))
    assert all(torch.equal(state.nan_to_num(), wanted[index].nan_to_num()) for index, state in found)


@pytest.mark.parametrize("name", [*FEW, "nanochat"])
def test_layers_are_read_one_by_one(name):
    check_reader(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*FEW, "nanochat", "deepseek_v4")])
def test_layers_of_every_architecture_are_read_one_by_one_or_asked_for_at_once(name):
    check_reader(name)


def test_most_architectures_are_expected_to_be_fine_tuned():
    assert len(set(NAMES) - set(REFUSED) - set(NOT_TRAINED)) >= 60


def test_the_table_lists_what_is_checked():
    with RESULTS.open(encoding="utf-8") as file:
        assert [row["architecture"] for row in csv.DictReader(file)] == list(NAMES)
