"""How far `convention="official"` is from a literal transcription of the released code, layer by layer.

    python -m benchmarks.official --output benchmarks/results/official.csv
    python -m benchmarks.official --model DIR --task reviews.jsonl --limit 300 --max-length 64 --layers 0,4,9,14,18
    python -m benchmarks.official --study DIR        # the output of a study with --convention official

The transcription is that of the tests (`tests/helpers/naive.py`). Columns: the largest difference over the 19
fractions; the mean of the 19 scores; and how far relative noise of 1e-7 in the moments moves the transcription's own
scores, mean and largest over the fractions. With `--study` it keeps the study's correlations, chosen on the tasks that
they are judged on and on others, in benchmarks/results/official_study.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import ntps
from ntps._files import atomic_write
from ntps.core import official_curve
from ntps.scoring import ScoreSettings, labels_of, score_layers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import naive

NOISE = 1e-7


def noisy(moment: torch.Tensor, rng: np.random.Generator, *, symmetric: bool) -> np.ndarray:
    """Return a moment with relative noise."""
    noise = NOISE * rng.normal(size=tuple(moment.shape))
    return moment.numpy() * (1 + (noise + noise.T) / 2 if symmetric else 1 + noise)


def keep_study(folder: Path) -> None:
    """Write the correlations of a study that have a layer and a fraction or rank to choose."""
    study = json.loads((folder / "study.json").read_text())
    names = [f"{score}:{way}" for score in ("ntps_official", "ntps") for way in ("same_tasks", "held_out_task")]
    names.append("ceiling_heldout")
    keys = ("spearman", "interval", "p_value", "null_quantiles", "n_options")
    found = {name: {key: study["correlations"][name].get(key) for key in keys} for name in names}
    about = {key: study[key] for key in ("models", "tasks", "target", "settings")}
    path = Path(__file__).parent / "results" / "official_study.json"
    atomic_write(path, json.dumps({**about, "correlations": found}, indent=1) + "\n")
    print(pd.DataFrame(found).T.to_string())


def main() -> None:
    """Compare, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["miniworld-small", "miniworld-base"])
    parser.add_argument("--task", nargs="+", default=["miniworld/topic", "miniworld/tense", "miniworld/sentiment"])
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--study", type=Path)
    options = parser.parse_args()
    if options.study is not None:
        keep_study(options.study)
        return
    rows = []
    for model in options.model:
        loaded = ntps.load_model(model)
        for name in options.task:
            task = ntps.load_task(name, limit=options.limit)
            texts = ntps.collect(loaded, task, layers=options.layers, max_length=options.max_length)
            for scored in score_layers(texts, labels_of(texts), ScoreSettings(folds=0)):
                solved = scored.solved
                pooled, next_token = solved.pooled, solved.next_token
                moments = (pooled.M, pooled.X, next_token.C0, next_token.C1)
                ours = np.array(official_curve(pooled, next_token)["ntps"])
                theirs = np.array(naive.released_procedure(*moments))
                rng = np.random.default_rng(0)
                symmetric = (True, False, True, False)
                moved = [noisy(each, rng, symmetric=kind) for each, kind in zip(moments, symmetric, strict=True)]
                by_noise = np.abs(np.array(naive.released_procedure(*moved)) - theirs)
                rows.append(
                    {
                        "model": Path(model).name,
                        "task": Path(name).stem,
                        "layer": solved.layer,
                        "largest_difference": np.nanmax(np.abs(ours - theirs)),
                        "mean_score": np.nanmean(theirs),
                        "noise_mean": np.nanmean(by_noise),
                        "noise_largest": np.nanmax(by_noise),
                    }
                )
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format="{:.2g}".format))
    if options.output is not None:
        frame.to_csv(options.output, index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
