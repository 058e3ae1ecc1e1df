"""Gather runs of `ntps lora` into the table that ships: `python -m benchmarks.real_lora bbc_news.json ...`.

Each file was written by the command in `ntps.course.measurements.LORA_COMMAND`, one text set each. Writes
ntps/course/data/real_lora.csv.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from ntps._files import atomic_write

TARGET = Path(__file__).parents[1] / "ntps/course/data/real_lora.csv"


def row(path: Path) -> dict[str, object]:
    """Return what one run says, read at the last layer."""
    found = json.loads(path.read_text())
    before, after = found["before"], found["after"]
    last = [side["layers"][-1] for side in (before, after)]
    values: dict[str, object] = {
        "task": found["task"],
        "n_train": found["n_train"],
        "n_test": found["n_test"],
        "steps": found["settings"]["steps"],
        "best_step": found["best_step"],
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "gain": found["gain"],
        "gain_se": found["gain_standard_error"],
        "next_token_loss_before": before["next_token_loss"],
        "next_token_loss_after": after["next_token_loss"],
    }
    for name in ("ntps", "explained_heldout", "ceiling_heldout"):
        values |= {f"{name}_{when}": layer[name] for when, layer in zip(("before", "after"), last, strict=True)}
    return values


def main() -> None:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    table = pd.DataFrame([row(path) for path in parser.parse_args().files]).sort_values("task")
    atomic_write(TARGET, table.to_csv(index=False, float_format="%.5g"))
    print(table.set_index("task").T.to_string())


if __name__ == "__main__":
    main()
