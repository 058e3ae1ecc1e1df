"""Measurements that a lesson reads instead of making them anew: committed figures, each with what made them.

The data frames are of a real model: Gemma 3 270M (18 blocks, 640 wide, 4-bit weights dequantised to float32) on five
public English text sets. The model and the texts are not part of the package; the figures are.
"""

from importlib import resources
from typing import TYPE_CHECKING, Any

from ntps._files import from_json, read_json

if TYPE_CHECKING:
    import pandas as pd

    from ntps.finetune import LoraResult
    from ntps.scoring import ScoreResult
    from ntps.study import Prescreening, Study

SETS = {
    "bbc_news": "topic of a news article, 5 classes",
    "movie_reviews": "sentiment of a sentence from a film review, 2 classes",
    "review_or_plot": "opinion or description, of film sentences, 2 classes",
    "spam_subjects": "unwanted mail or not, by its subject line, 2 classes",
    "tweets_sentiment": "sentiment of a tweet, 2 classes",
}
STUDY_COMMAND = (
    "ntps study --model gemma-3-270m --model smollm2-135m "
    + " ".join(f"--task {name}.jsonl" for name in SETS)
    + " --limit 500 --max-length 64 --output real"
)

LORA_COMMAND = (
    "ntps lora gemma-3-270m SET.jsonl --limit 800 --max-length 64 --steps 60 --evaluate-every 20 --margin 0 "
    "--layers 9,18 --json SET.json"
)


def real_study() -> "pd.DataFrame":
    """Return the study's table, one row per model and text set, with columns of `Study.frame`.

    Scores are read at half the depth and k_v = max(k_u, d / 8) on one half of 500 texts cut at 64 tokens, the probe of
    the last layer on the other half; columns that end in `_random` are of fresh weights. `attrs["command"]` is the
    command that made `study.csv`, from which `python -m benchmarks.real_model` takes these columns.
    """
    return _read("real_study.csv", STUDY_COMMAND)


def real_lora() -> "pd.DataFrame":
    """Return the fine-tuning runs, one row per text set: before and after on test texts, last layer.

    480 training, 120 validation and 200 test texts cut at 64 tokens, 60 steps on a CPU; the weights with the lowest
    validation loss were kept (`--margin 0`). `best_step` is 0 where that was the frozen probe: not tuned, so after is
    before. `attrs["command"]` made each run, `python -m benchmarks.real_model` the table.
    """
    return _read("real_lora.csv", LORA_COMMAND)


def lesson_runs() -> "dict[str, LoraResult]":
    """Return the fine-tuning runs of lesson 04, made before by `python -m benchmarks.lesson_runs runs`.

    By name: `topic` and `watermark` (rank 32 on 600 texts each); and, on the watermark, `low` (rank 1, alpha 1), `loud`
    (rank 1, alpha 32) and `whole` (all weights). Their scores have no curves and no intervals.
    """
    return {name: _run(row) for name, row in _stored("lesson_runs").items()}


def lesson_study() -> "Study":
    """Return the study of lesson 03, made before by `python -m benchmarks.lesson_runs study`.

    Two checkpoints on ten tasks, with fresh weights. Its cells have no provenance.
    """
    from ntps.study import Study, StudySettings
    from ntps.study.records import CellResult

    row = _stored("lesson_study")
    return Study(
        cells=tuple(CellResult.from_dict(cell) for cell in row["cells"]),
        models=tuple(row["models"]),
        tasks=tuple(row["tasks"]),
        settings=StudySettings(**row["settings"]),
    )


def lesson_screens() -> "dict[str, Prescreening]":
    """Return the prescreenings of lesson 05, made before by `python -m benchmarks.lesson_runs screens`.

    By name: `eight`, of its eight tasks without a look at training; `own`, of 400 texts after twenty steps.
    """
    from ntps.finetune import TrainSettings
    from ntps.study import Prescreening, PrescreenSettings, load_calibration

    return {
        name: Prescreening(
            model=row["model"],
            rows=tuple(row["tasks"]),
            budget=row["budget"],
            calibrations=tuple(load_calibration(steps=steps) for steps in row["calibrations"]),
            settings=PrescreenSettings(**row["settings"]),
            training=TrainSettings(**row["training"]),
            seconds=row["seconds"],
        )
        for name, row in _stored("lesson_screens").items()
    }


def _stored(name: str) -> dict[str, Any]:
    with resources.as_file(resources.files("ntps.course").joinpath(f"data/{name}.json")) as path:
        return dict(read_json(path))


def _run(row: dict[str, Any]) -> "LoraResult":
    from ntps.finetune.results import LoraResult, Side

    sides = {}
    for when in ("before", "after"):
        values = dict(row[when])
        values["score"] = _score(values.pop("layers"), row["n_test"], len(row["provenance"]["classes"]))
        sides[when] = Side(**values)
    return LoraResult(**{**row, **sides})


def _score(layers: list[dict[str, Any]], n_texts: int, n_classes: int) -> "ScoreResult":
    from ntps.scoring import LayerScore, ScoreResult

    absent: dict[str, Any] = {"null": None, "interval": None, "control": None, "curve": {}}
    read = tuple(from_json(LayerScore, {**layer, **absent}, f"layer {layer['layer']}") for layer in layers)
    return ScoreResult(layers=read, convention="theory", n_texts=n_texts, n_tokens=0, n_classes=n_classes)


def _read(name: str, command: str) -> "pd.DataFrame":
    import pandas as pd

    with resources.files("ntps.course").joinpath(f"data/{name}").open("r", encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame.attrs.update(command=command)
    return frame
