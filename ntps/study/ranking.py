"""Which of several models reads a task's labels best: every model judged on the same texts, labels and folds.

A model stands for its best layer, chosen for each fold on the others' texts; models whose difference is within
what the texts can tell, paired text by text and corrected for their number, form a group. NTPS is no part of the order:
the share that goes through V says what next-token prediction has to do with it.
"""

import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ntps._files import picked
from ntps._names import distinct, one_line, short_name, shortened
from ntps._text import duration
from ntps.core.moments import POOLINGS
from ntps.errors import LARGEST, NtpsError, one_of, reason_of, whole
from ntps.models import LanguageModel, Representations, collect, load_model
from ntps.models.checkpoints import place_of
from ntps.models.load import find_device, weight_bytes
from ntps.models.passes import FILE
from ntps.models.plan import free_memory, parse_layers, size_text
from ntps.models.pretrained import DTYPES
from ntps.models.processes import Processes
from ntps.scoring import Labels, ScoreSettings, assign_folds, score_layers, tied_groups
from ntps.scoring.headline import baselines_of, curve_of, label_values, layer_readouts, predictions_of, probe_of
from ntps.scoring.measures import spectrum
from ntps.scoring.predictors import Predictor
from ntps.scoring.readouts import Comparison, choose_layer, compare_readouts, pair_confidence
from ntps.scoring.scores import origin_of
from ntps.study.ranking_results import HardText, LayerValue, RankedModel, Ranking, ThroughV
from ntps.tasks import LabelColumn, Task, load_task

HARD_TEXTS = 20
FAR = 2.0  # root mean square errors: a real value beyond this is predicted wrongly
_SHOWN = 200  # characters of a text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Options of a ranking, apart from its models and its task.

    Attributes:
        layers: As in `ntps.collect`; numbers must exist in every model.
        max_length: As in `ntps.collect`.
        pooling: What represents a text: the `"mean"` of its tokens' states, or the `"last"`.
        folds: Folds of held-out values, at least 2; `"auto"` as in `ntps.score`.
        seed: Seed of folds, learning curves and random weights.
        k_v: Next-token rank of the share through V; by default as in `ntps.score`.
        spectrum: Whether to add the spectrum of each best layer, label-free rivals of R^2.
        control: Whether to rank the best model's architecture with random weights beside the others.
        dtype, tokenizer, revision, trust_remote_code: As in `ntps.load_model`, for every model.

    Raises:
        NtpsError: If an option is out of range.
    """

    layers: str | int | Sequence[int] = "all"
    max_length: int | None = None
    pooling: str = "mean"
    folds: int | str = "auto"
    seed: int = 0
    k_v: int | None = None
    spectrum: bool = False
    control: bool = True
    dtype: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.layers != "all":
            parse_layers(self.layers, LARGEST)  # each model says whether it has such layers
        one_of(self.pooling, POOLINGS, "pooling")
        whole(self.seed, 0, None, "seed")
        if self.folds != "auto":
            whole(self.folds, 2, None, "folds")
        for name, least in (("max_length", 2), ("k_v", 1)):
            if getattr(self, name) is not None:
                whole(getattr(self, name), least, None, name)
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")

    def loading(self) -> dict[str, Any]:
        """Return the options of `ntps.load_model`."""
        return picked(self, "dtype", "tokenizer", "revision", "trust_remote_code")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Entrant:
    """A model that was read.

    Attributes:
        model: What it was loaded from.
        name: Its short name.
        path: File of its pass.
        n_layers: Number of its layers, read or not.
        text_index, text_group: As in its `Representations`.
    """

    model: Any
    name: str
    path: Path
    n_layers: int
    text_index: np.ndarray
    text_group: np.ndarray


def rank(
    task: Task | str | os.PathLike[str],
    models: Sequence[str | os.PathLike[str] | LanguageModel],
    *,
    labels: str | None = None,
    settings: RankSettings | None = None,
    batch_size: int = 32,
    device: str | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Ranking:
    """Rank models by how well a linear readout of their best layer predicts a task's labels on other texts.

    Models are read one after another, one in memory at a time. One that cannot be loaded or read is listed with the
    reason. Models that read later tokens (BERT and its kin, sentence encoders) are ranked beside causal ones; they have
    no share through V.

    Under torchrun all processes take part in each pass, the main one judges, and all return its ranking. A model that
    fails in one of them is not ranked.

    Args:
        task: From `ntps.load_task`, or what it reads with its own defaults: a bundled name, a file, a hub name.
        models: At least one; see `ntps.load_model`.
        labels: Name of the label column; the first by default.
        settings: See `RankSettings`.
        batch_size: As in `ntps.collect`.
        device: As in `ntps.load_model`.
        folder: Folder in which to keep each model's pass and to reuse it; by default nothing is kept.
        progress: Whether to show progress bars on stderr; by default when it is a terminal.

    Raises:
        NtpsError: If no model can be read (the message has the reasons), a model is named twice, an option is out of
            range, or the labels do not vary.
    """
    task = task if isinstance(task, Task) else load_task(task)
    return rank_columns(
        task,
        models,
        columns=[task.columns[0] if labels is None else task.column(labels)],
        settings=settings,
        batch_size=batch_size,
        device=device,
        folder=folder,
        progress=progress,
    )[0]


def rank_columns(
    task: Task,
    models: Sequence[str | os.PathLike[str] | LanguageModel],
    *,
    columns: Sequence[LabelColumn] | None = None,
    settings: RankSettings | None = None,
    batch_size: int = 32,
    device: str | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> list[Ranking]:
    """Rank models on several label columns of a task, all by default, from one pass of each model; see `rank`.

    Raises:
        NtpsError: As `rank`.
    """
    settings = settings or RankSettings()
    columns = task.columns if columns is None else columns
    whole(batch_size, 1, None, "batch_size")
    named = _by_name(models)
    loaded = [model.device for model in named.values() if isinstance(model, LanguageModel)]
    processes = Processes(find_device(device) if device is not None or not loaded else loaded[0])
    for column in columns:  # refused now, not after the passes
        values = column.values[column.labelled]
        if len(np.unique(values)) < 2:
            raise NtpsError(f"{task.name}: all labels in {column.name!r} are the same; there is nothing to tell apart.")
        first: dict[str, int] = {}
        equal = [first.setdefault(task.texts[index], index) for index in np.flatnonzero(column.labelled).tolist()]
        _folds(task, column, values, np.array(equal), settings)
    with ExitStack() as stack:
        kept = Path(folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory()))
        reader = _Reader(
            task, settings, processes, batch_size=batch_size, device=device, folder=kept, progress=progress
        )
        entrants, failed = reader.read_all(named)
        if not entrants:
            reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in failed.items())
            raise NtpsError(f"no model can be ranked: {reasons}.")
        return [_rank_column(task, column, entrants, failed, reader) for column in columns]


def _by_name(models: Any) -> dict[str, Any]:
    """Return models by short names, all different; a single model may stand for a list of one.

    Raises:
        NtpsError: If no model is given, or the same one twice.
    """
    if isinstance(models, str | os.PathLike | LanguageModel):
        models = [models]
    if not models:
        raise NtpsError("models is empty; name at least one model.")
    given = [model.name if isinstance(model, LanguageModel) else os.fspath(model) for model in models]
    places = [model.name if isinstance(model, LanguageModel) else place_of(os.fspath(model)) for model in models]
    for index, name in enumerate(given):
        if name in given[:index] or places[index] in places[:index]:
            raise NtpsError(f"model {short_name(name)} is named twice; name each model once.")
    short = distinct(given)
    return {short[name]: model for name, model in zip(given, models, strict=True)}


class _Reader:
    """Reads models one after another, and keeps each one's pass in a file."""

    def __init__(
        self,
        task: Task,
        settings: RankSettings,
        processes: Processes,
        *,
        batch_size: int,
        device: str | None,
        folder: Path,
        progress: bool | None,
    ) -> None:
        self.task, self.settings, self.processes = task, settings, processes
        self.batch_size, self.device = batch_size, device
        self.folder, self.progress = folder, progress

    def read_all(self, models: dict[str, Any]) -> tuple[list[_Entrant], dict[str, str]]:
        """Return the models that could be read, and by name why others could not."""
        sizes, failed = {}, {}
        for name, model in models.items():
            try:
                sizes[name] = self.processes.together(partial(_size, model))
            except Exception as error:  # there is no such model
                failed[name] = _why(name, error)
        entrants, began, done = [], time.monotonic(), 0.0
        for number, name in enumerate(sizes, 1):
            if len(sizes) > 1:
                size = "" if math.isnan(sizes[name]) else f", {size_text(sizes[name])} of weights"
                left = (time.monotonic() - began) * sum(list(sizes.values())[number - 1 :]) / done if done else math.nan
                expected = "" if math.isnan(left) else f", about {duration(left)} left"
                logger.info("model %d of %d: %s%s%s.", number, len(sizes), name, size, expected)
            try:
                entrants.append(self.read(name, models[name], sizes[name]))
            except Exception as error:  # the other models go on
                failed[name] = _why(name, error).removeprefix(f"{models[name]}: ")
            else:
                done += sizes[name]
        for name, reason in failed.items() if entrants else ():
            logger.warning("%s is not ranked: %s", name, reason)
        return entrants, failed

    def read(self, name: str, model: Any, size: float = math.nan, *, random_weights: bool = False) -> _Entrant:
        """Load a model, run it over the texts, and return where its representations are."""
        loaded = self.processes.together(lambda: self.load(model, size, random_weights=random_weights))
        words = re.sub(r"[^\w.@-]+", "-", name)[:60]
        folder = self.folder / f"{words}-{loaded.fingerprint[:12]}"
        representations = collect(
            loaded,
            self.task,
            layers=self.settings.layers,
            max_length=self.settings.max_length,
            pooling=self.settings.pooling,
            batch_size=self.batch_size,
            folder=folder,
            progress=self.progress,
        )
        return _Entrant(
            model=model,
            name=name,
            path=folder / FILE,
            n_layers=loaded.n_layers,
            text_index=representations.text_index,
            text_group=representations.text_group,
        )

    def load(self, model: Any, size: float, *, random_weights: bool) -> LanguageModel:
        """Return a model, loaded, or its architecture with random weights."""
        options: dict[str, Any] = {"random_weights": True, "seed": self.settings.seed} if random_weights else {}
        if not isinstance(model, LanguageModel):
            self.check_memory(size)
            options |= {"device": self.device, **self.settings.loading()}
        elif not random_weights:
            return model
        else:
            model, options["tokenizer"] = model.model, model.tokenizer
        return load_model(model, bidirectional=True, **options)

    def check_memory(self, size: float) -> None:
        """Refuse weights that are larger than the memory that is free before they are read.

        Raises:
            NtpsError: If they are.
        """
        memory = free_memory() if str(self.device or "cpu") == "cpu" else None
        if memory is not None and size > memory:
            raise NtpsError(f"its weights take {size_text(size)}, and {size_text(memory)} of memory are free.")


def _why(name: str, error: Exception) -> str:
    """Return why a model failed; of a fault of ours, the log holds the traceback."""
    if not isinstance(error, NtpsError | MemoryError | torch.cuda.OutOfMemoryError):
        logger.error("%s failed.", name, exc_info=error)
    return reason_of(error)


def _size(model: Any) -> float:
    """Return the size of a model's weights in bytes, NaN if it is not known before it is loaded.

    Raises:
        NtpsError: If there is no such model on this machine, and it cannot be on the hub.
    """
    if isinstance(model, LanguageModel):
        return float(sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters()))
    size = weight_bytes(model)
    return math.nan if size is None else float(size)


def _rank_column(
    task: Task, column: LabelColumn, entrants: Sequence[_Entrant], failed: dict[str, str], reader: _Reader
) -> Ranking:
    """Rank models that were read on one label column."""
    settings = reader.settings
    chosen, equal = _shared_texts(column, entrants)
    if len(np.unique(column.values[chosen])) < 2:
        raise NtpsError(f"{task.name}: the texts in which every model finds a token have one label in {column.name!r}.")
    fold_of = _folds(task, column, column.values[chosen], equal, settings)

    def labels_for(entrant: _Entrant) -> Labels:
        return Labels(
            name=column.name,
            values=column.values[chosen],
            classes=column.classes,
            rows=np.searchsorted(entrant.text_index, chosen),
            n_missing=0,
            groups=equal,
        )

    def without_control() -> Ranking:
        judged = [_judge(entrant, labels_for(entrant), fold_of, task, settings) for entrant in entrants]
        models, groups, behind = in_order(judged)
        labels = labels_for(entrants[0])
        return Ranking(
            task=task.name,
            label_column=column.name,
            classes=column.classes,
            class_sizes=labels.class_sizes,
            n_texts=len(chosen),
            n_left_out=int(column.labelled.sum()) - len(chosen),
            models=models,
            failed=failed,
            groups=groups,
            behind=behind,
            baselines=baselines_of([task.texts[i] for i in chosen], labels, fold_of, models[0].choice.readout),
            fresh_weights=None,
            hard_texts=_hard_texts(task, labels, chosen, models),
            settings={**asdict(settings), "folds": int(fold_of.max()) + 1},
            kind=column.kind,
        )

    ranking = reader.processes.of_main(without_control)
    best = ranking.models[0]
    if not (settings.control and best.choice.holds):
        return ranking
    winner = next(entrant for entrant in entrants if entrant.name == best.name)
    control = _control(winner, labels_for(winner), fold_of, task, reader)
    return replace(ranking, fresh_weights=control)


def in_order(
    judged: Sequence[RankedModel],
) -> tuple[tuple[RankedModel, ...], tuple[tuple[str, ...], ...], dict[str, Comparison]]:
    """Return models best first, the names of their groups, and how each but the first compares with it."""
    ties = tied_groups([model.choice.readout for model in judged])
    models = tuple(judged[index] for group in ties for index in group)
    level, leader = pair_confidence(len(models)), models[0].choice.readout
    behind = {model.name: compare_readouts(leader, model.choice.readout, confidence=level) for model in models[1:]}
    return models, tuple(tuple(judged[index].name for index in group) for group in ties), behind


def _folds(
    task: Task, column: LabelColumn, values: np.ndarray, equal: np.ndarray, settings: RankSettings
) -> np.ndarray:
    """Return the fold of each labelled text, equal ones in one fold.

    Raises:
        NtpsError: If no text can be held out, or there are more folds than texts to fill them.
    """
    fold_of = assign_folds(values, settings.folds, groups=equal, seed=settings.seed)
    if fold_of is None:
        which = f"no class of {column.name!r} has" if column.kind == "classification" else f"{column.name!r} has not"
        raise NtpsError(f"{task.name}: {which} two different texts, so none can be held out.")
    return fold_of


def _shared_texts(column: LabelColumn, entrants: Sequence[_Entrant]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labelled texts in which every model finds a token, and equal numbers for those that belong together.

    Texts that are equal to one model must share a fold for all of them, so that all are judged on the same folds.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(column)
    present = column.labelled.copy()
    for entrant in entrants:
        read = np.zeros(n, dtype=bool)
        read[entrant.text_index] = True
        present &= read
    texts = np.concatenate([entrant.text_index for entrant in entrants])
    firsts = np.concatenate([entrant.text_index[entrant.text_group] for entrant in entrants])
    equal = coo_array((np.ones(len(texts)), (texts, firsts)), shape=(n, n))
    _, group = connected_components(equal, directed=False)
    chosen = np.flatnonzero(present)
    return chosen, group[chosen].astype(np.int64)


def _judge(entrant: _Entrant, labels: Labels, fold_of: np.ndarray, task: Task, settings: RankSettings) -> RankedModel:
    """Judge a model that was read: every layer, and of the best its probe, learning curve and share through V."""
    representations = Representations.load(entrant.path, task=task)
    origin = origin_of(representations, labels, fold_of)
    readouts = layer_readouts(representations, labels, fold_of, origin=origin)
    choice = choose_layer(representations.layers, readouts, fold_of)
    facts = representations.metadata
    predicted = None
    if labels.kind != "classification":
        predicted = predictions_of(representations, labels, fold_of, choice)
    return RankedModel(
        name=entrant.name,
        causal=representations.next_token is not None,
        n_parameters=facts["n_parameters"],
        n_layers=entrant.n_layers,
        width=representations.widths[representations.layers.index(choice.layer)],
        seconds=representations.seconds,
        memory_bytes=facts.get("memory_bytes"),
        n_truncated=facts["n_truncated"],
        choice=replace(choice, readout=replace(choice.readout, name=entrant.name)),
        layers=tuple(
            LayerValue(layer=layer, r2=readout.r2, interval=readout.interval())
            for layer, readout in zip(representations.layers, readouts, strict=True)
        ),
        probe=probe_of(representations, labels, fold_of, choice) if labels.kind == "classification" else None,
        labels=label_values(cast(np.ndarray, predicted), labels, fold_of, choice)
        if labels.kind == "multilabel"
        else (),
        predicted=predicted,
        through_v=_through_v(representations, labels, choice.layer, settings),
        spectrum=spectrum(labels.states(representations, choice.layer)) if settings.spectrum else None,
        learning=curve_of(representations, labels, fold_of, choice, seed=settings.seed),
    )


def _through_v(representations: Representations, labels: Labels, layer: int, settings: RankSettings) -> ThroughV | None:
    """Return what goes through V at the best layer, as `ntps.score` gives it; `None` without next-token moments."""
    if representations.next_token is None:
        return None
    scoring = ScoreSettings(folds=settings.folds, seed=settings.seed, k_v=settings.k_v)
    scored = next(score_layers(representations, labels, scoring, layers=[layer]))
    readout, score = scored.readouts["v"], scored.score
    share = math.nan if score.retained_heldout is None else score.retained_heldout
    return ThroughV(
        k_v=score.k_v, r2=readout.r2, interval=readout.interval(), share=share, ntps=score.ntps, chance=score.chance
    )


def _control(entrant: _Entrant, labels: Labels, fold_of: np.ndarray, task: Task, reader: _Reader) -> RankedModel | None:
    """Return the architecture of a model with random weights, judged alike; `None`, and a message, where it fails."""
    name = f"{entrant.name}, random weights"
    logger.info("%s: the control for pretraining.", name)
    try:
        control = reader.read(name, entrant.model, random_weights=True)
    except Exception as error:
        logger.warning("%s: %s", name, _why(name, error))
        return None
    return reader.processes.of_main(lambda: _judge(control, labels, fold_of, task, reader.settings))


def _hard_texts(task: Task, labels: Labels, chosen: np.ndarray, models: Sequence[RankedModel]) -> tuple[HardText, ...]:
    """Return the texts that every model that holds the labels predicts wrongly, worst first."""
    holding = [model for model in models if model.choice.holds]
    if not holding:
        return ()
    of_kind: dict[str, Callable[..., Iterator[tuple[int, Any, Any, float]]]]
    of_kind = {"classification": _hard_classes, "regression": _hard_values, "multilabel": _hard_labels}
    worst = sorted(of_kind[labels.kind](labels, holding), key=itemgetter(3))[:HARD_TEXTS]
    return tuple(
        HardText(
            index=int(chosen[text]),
            label=label,
            predicted=predicted,
            margin=margin,
            text=shortened(one_line(task.texts[chosen[text]]), _SHOWN),
        )
        for text, label, predicted, margin in worst
    )


def _hard_classes(labels: Labels, models: Sequence[RankedModel]) -> Iterator[tuple[int, str, str, float]]:
    """Yield the number, class, predicted class and margin of each text that every model's probe predicts wrongly."""
    probes = [cast(Predictor, model.probe) for model in models]
    margins = np.stack([cast(np.ndarray, probe.margins) for probe in probes])
    predicted = np.stack([cast(np.ndarray, probe.predicted) for probe in probes])
    for text in np.flatnonzero((margins < 0).all(0)).tolist():
        most = np.bincount(predicted[:, text]).argmax()
        yield text, labels.classes[labels.values[text]], labels.classes[most], float(margins[:, text].mean())


def _hard_values(labels: Labels, models: Sequence[RankedModel]) -> Iterator[tuple[int, float, float, float]]:
    """Yield the number, value, prediction and margin of each text that every model is far from, on the same side."""
    predicted = np.stack([cast(np.ndarray, model.predicted)[:, 0] for model in models])
    errors = predicted - labels.targets.numpy()[:, 0]
    errors /= np.sqrt(np.square(errors).mean(1, keepdims=True))
    in_units = labels.in_units(predicted.mean(0)[:, None])[:, 0]
    for text in np.flatnonzero((errors > FAR).all(0) | (errors < -FAR).all(0)).tolist():
        yield text, float(labels.values[text]), float(in_units[text]), -float(np.abs(errors[:, text]).mean())


def _hard_labels(labels: Labels, models: Sequence[RankedModel]) -> Iterator[tuple[int, str, str, float]]:
    """Yield the same as for classes, label by label, asking the models that hold that label."""
    predicted = np.stack([labels.in_units(cast(np.ndarray, model.predicted)) for model in models])
    answers = ("no", "yes")
    for index, name in enumerate(labels.classes):
        holding = [model.labels[index].interval[0] > 0 for model in models]
        if not any(holding):
            continue
        values = labels.values[:, index]
        margins = (2 * predicted[holding, :, index] - 1) * (2 * values - 1)
        for text in np.flatnonzero((margins < 0).all(0)).tolist():
            given, other = answers[values[text]], answers[1 - values[text]]
            yield text, f"{name}: {given}", f"{name}: {other}", float(margins[:, text].mean())
