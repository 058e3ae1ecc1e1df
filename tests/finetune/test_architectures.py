"""Architectures of transformers, tiny and with random weights: each is scored and fine-tuned, or refused in a sentence.

They are built by `benchmarks.architectures`, which also writes the table of them.
"""

import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import NAMES, RESULTS, check  # noqa: E402

REFUSED = {  # encoders, and decoders that read several streams or both ways
    "bert": "encoder", "roberta": "encoder", "xlm": "encoder", "cpmant": "not causal", "xlnet": "not causal",
    "deepseek_v4": "one state per token",
}  # fmt: skip
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


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("gemma3", "fc2: no text passes them"),
        ("llama4_text", "2 router: they return more than a tensor; 2 experts: their weights are fused into one tensor"),
        ("mamba", "2 dt_proj: another module reads their weights; 2 out_proj: PEFT refuses them in Mamba layers"),
        ("dots1", "down_proj: PEFT takes their names for fused experts"),
        ("opt", ""),
    ],
)
def test_what_cannot_be_adapted_is_left_out_and_named(name, left_out):
    row = check(name)
    as_expected(row)
    assert left_out in row.left_out


@pytest.mark.slow
def test_every_architecture_is_scored_and_fine_tuned_or_refused():
    assert len(NAMES) >= 60
    rows = [check(name) for name in NAMES if name not in FEW]
    for row in rows:
        as_expected(row)
    assert sum(row.lora == "yes" for row in rows) >= 60


def test_the_table_lists_what_is_checked():
    with RESULTS.open(encoding="utf-8") as file:
        assert [row["architecture"] for row in csv.DictReader(file)] == list(NAMES)
