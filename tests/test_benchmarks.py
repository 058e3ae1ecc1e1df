"""The benchmark for GPUs runs on a CPU in little, by the same code; a part that fails does not take others with it."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_the_benchmark_for_gpus_measures_every_part(tmp_path, capsys):
    gpu.main(["--small", "--device", "cpu", "--output", str(tmp_path / "small.json")])
    result = json.loads((tmp_path / "small.json").read_text())
    parts = result["parts"]
    assert not [name for name, part in parts.items() if "failed" in part or "skipped" in part], parts
    assert result["machine"]["torch"]
    assert result["seconds"] < 60
    for name in ("pass 1B", "pass 8B"):
        assert parts[name]["layer_by_layer"]
        assert set(parts[name]["with_moments_over_alone"]) == set(gpu.PRECISIONS)
        assert parts[name]["collect_tokens_per_second"] > 0
    for name in ("overlap 1B", "overlap bundled"):
        for precision, least in parts[name]["least"].items():
            assert all((0.99 if precision == "medium" else 0.9999) <= value <= 1 + 1e-9 for value in least.values())
    assert parts["scores bundled"]["highest"]["ntps"] < 5e-3 < 0.1 > parts["scores bundled"]["medium"]["ntps"]
    assert parts["training 1B"]["training_tokens_per_second"] > 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[len(parts)].endswith("seconds")
    assert "forward with moments over alone" in printed
    assert "solve 48 on the CPU: seconds a layer" in printed


def test_overlaps_notice_another_space():
    import torch

    one = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert gpu.overlap(one, one[:, [1, 0, *range(2, 20)]], 2) == pytest.approx(1)
    assert gpu.overlap(one, one[:, 10:], 5) == pytest.approx(0)
    assert gpu.overlap(one, one[:, [0, 5]], 2) == pytest.approx(0.5)


def test_a_part_that_fails_or_comes_too_late_stands_in_the_table(tmp_path):
    run = gpu.Run(gpu.Machine("cpu"), 100, tmp_path / "out.json")
    run.part("solve 1", lambda: 1 / 0, 1)
    run.part("solve 2", lambda: {"seconds": 2.0}, 1000)
    run.part("solve 3", lambda: {"seconds": 3.0}, 1)
    assert json.loads((tmp_path / "out.json").read_text()) == run.result
    lines = gpu.table(run.result).splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == ["solve 1", "solve 2", "solve 3: seconds a layer"]
    assert all(word in line for line, word in zip(lines, ("division", "of 100 seconds", "3.00"), strict=True))
