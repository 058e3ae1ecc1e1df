"""Gather what was measured on a real model into the two tables that ship.

    python -m benchmarks.real_model real/study.csv bbc_news.json movie_reviews.json ...

The .csv is the table of the study in `ntps.course.measurements.STUDY_COMMAND`, each .json a run of `LORA_COMMAND`
there, one set of texts each. Writes ntps/course/data/real_study.csv and real_lora.csv, with the columns that lessons,
docs and tests read.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from ntps._files import atomic_write

DATA = Path(__file__).parents[1] / "ntps/course/data"
STUDY_COLUMNS = [
    "model", "task", "n_scored", "n_probed", "majority_rate", "layer", "d", "k_v", "ntps", "chance", "ntps_p",
    "explained_heldout", "explained_heldout_random", "ceiling_heldout", "ceiling_heldout_low", "ceiling_heldout_high",
    "ceiling_heldout_p", "ceiling_heldout_random", "held_back", "accuracy", "balanced_accuracy",
]  # fmt: skip


def tuned_row(path: Path) -> dict[str, object]:
    """Return what one run of `ntps lora` says, read at the last layer."""
    found = json.loads(path.read_text())
    before, after = found["before"], found["after"]
    last = [side["layers"][-1] for side in (before, after)]
    values: dict[str, object] = {
        "task": found["task"],
        "n_train": found["n_train"],
        "n_test": found["n_test"],
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
    """Write the tables of the files given, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    files = parser.parse_args().files
    studies = [pd.read_csv(path)[STUDY_COLUMNS] for path in files if path.suffix == ".csv"]
    runs = [tuned_row(path) for path in files if path.suffix == ".json"]
    tables = {}
    if studies:
        tables["real_study"] = pd.concat(studies)
    if runs:
        tables["real_lora"] = pd.DataFrame(runs).sort_values("task")
    for name, table in tables.items():
        atomic_write(DATA / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))
        print(table.T.to_string())


if __name__ == "__main__":
    main()
