"""Labelled texts in files of every kind, and the message of a task that does not load."""

from types import SimpleNamespace

import pytest

from ntps import _hub
from ntps.errors import NtpsError
from ntps.tasks import load_task

ROWS = [("the film was good", "pos"), ("a dull story", "neg"), ("we liked it", "pos"), ("bad, and worse", "neg")]


def write(path, rows=ROWS, columns=("text", "label")):
    """Write rows in the format that the extension names."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)  # a missing label makes no floats of integers
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix in {".jsonl", ".ndjson"}:
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records")
    else:
        frame.to_parquet(path)
    return path


def save(path, rows=ROWS, names=None, splits=("train",)):
    """Write a save_to_disk folder; with `names`, labels are numbers of declared classes."""
    import datasets

    features = {"text": datasets.Value("string")}
    features["label"] = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    made = datasets.Dataset.from_dict(
        {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}, features=datasets.Features(features)
    )
    hub_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    (made if splits is None else datasets.DatasetDict(dict.fromkeys(splits, made))).save_to_disk(str(path))
    if not hub_bars:
        datasets.enable_progress_bars()
    return path


def fails(*words, **options):
    """Load and return the message, which must be one line that holds every word."""
    with pytest.raises(NtpsError) as caught:
        load_task(**options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


def hub_gives(monkeypatch, load):
    """Let a hub answer with what a function of name, configuration and revision returns, a Dataset or a DatasetDict."""
    import datasets

    def builder(name, config=None, *, revision=None):
        loaded = load(name, config, revision)
        return SimpleNamespace(
            config=SimpleNamespace(data_files=None),
            info=SimpleNamespace(builder_name="parquet"),
            download_and_prepare=lambda: None,
            as_dataset=lambda: loaded,
        )

    monkeypatch.setattr(_hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
