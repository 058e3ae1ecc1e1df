"""What a study knows of one model on one task: scores of every layer with nulls and intervals, probes and measures.

One pass over the texts gives moments per fold and pooled features; everything else is solved from those.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import jsonable
from ntps.core.heldout import held_out_explained
from ntps.core.moments import Moments
from ntps.core.solve import LayerSolution, read_layer, solve_layer
from ntps.errors import NtpsError, in_range
from ntps.models.features import Features
from ntps.models.passes import collect
from ntps.models.plan import layer_at
from ntps.scoring.evidence import add_evidence
from ntps.scoring.intervals import jackknife
from ntps.scoring.nulls import permutation_null
from ntps.scoring.results import LayerScore, ScoreResult
from ntps.scoring.transferability import transferability

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel
    from ntps.tasks.load import Task

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # ranks that mean the same in models of any width
DEPTHS = (0.5, 1.0)  # layers at which probes and other measures are taken, as shares of the depth
DEFAULT_LIMIT = 1000


@dataclass(frozen=True)
class StudySettings:
    """What shapes a cell, apart from model, task and seed.

    Attributes:
        limit: Most texts of a task, a seeded random sample.
        max_length: Most tokens of a text; `None` as in `collect_moments`.
        folds: Folds for held-out shares, intervals and probes; at least 3.
        n_permutations: Shuffled labels of the null.
        measure_layers: `"default"` (half the depth and the last) or `"all"`: where probes and measures are taken.
        center: As in `ntps.score`.
        prefix: As in `collect_moments`.
        dtype: As in `load_model`.
    """

    limit: int | None = DEFAULT_LIMIT
    max_length: int | None = None
    folds: int = 5
    n_permutations: int = 200
    measure_layers: str = "default"
    center: bool = False
    prefix: str = "sum"
    dtype: str | None = None

    def check(self) -> "StudySettings":
        """Return the settings if they can be met.

        Raises:
            NtpsError: If one is out of range.
        """
        if self.limit is not None:
            in_range(self.limit, 10, None, "limit")
        if self.max_length is not None:
            in_range(self.max_length, 2, None, "max_length")
        in_range(self.folds, 3, None, "folds")
        in_range(self.n_permutations, 1, None, "n_permutations")
        if self.measure_layers not in ("default", "all"):
            raise NtpsError(f"measure_layers is {self.measure_layers!r}; choose default or all.")
        return self


def measure(
    model: "LanguageModel",
    task: "Task",
    settings: StudySettings,
    *,
    seed: int = 0,
    control: bool = False,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Return the content of a cell, as JSON values that depend on the arguments alone.

    Args:
        model: From `ntps.load_model`.
        task: From `ntps.load_task`, already limited.
        settings: See `StudySettings`.
        seed: Seed of folds, permutations and probes.
        control: Measure the last layer only: the random-weight control needs no more.
        batch_size: As in `collect_moments`.

    Returns:
        `score`, as `ScoreResult.to_dict()`, each layer with `null`, `interval` and `grid` (shares of the width, `k_v`,
        `ntps`, `explained`, `retained`, `explained_heldout`); and `measures`, a dictionary per layer number as text.

    Raises:
        NtpsError: As `collect_moments` and `ntps.score`.
    """
    moments, kept = collect(
        model,
        task,
        max_length=settings.max_length,
        prefix=settings.prefix,
        folds=settings.folds,
        fold_prefix=True,
        seed=seed,
        batch_size=batch_size,
        keep_features=True,
        progress=False,
    )
    features = cast(Features, kept)  # there, because of keep_features
    solutions = {layer: solve_layer(moments.layer(layer), center=settings.center) for layer in moments.layers}
    scored, grids = zip(*(_layer(moments, solutions[layer]) for layer in moments.layers), strict=True)
    result = ScoreResult(
        layers=scored,
        convention="theory",
        n_texts=moments.n_texts,
        n_tokens=moments.n_tokens,
        n_classes=moments.n_targets,
        settings={**moments.metadata["settings"], "center": settings.center, "rtol": None, **asdict(settings)},
        metadata={key: value for key, value in moments.metadata.items() if key != "settings"},
    )
    nulls = permutation_null(
        moments,
        features,
        center=settings.center,
        n_permutations=settings.n_permutations,
        seed=seed,
        solutions=solutions,
    )
    intervals = jackknife(moments, center=settings.center, solutions=solutions)
    content = add_evidence(result, nulls=nulls, intervals=intervals).to_dict()
    for row, grid in zip(content["layers"], grids, strict=True):
        row["grid"] = grid
    last = moments.layers[-1]
    layers = [last] if control else _measured_layers(settings, moments.layers)
    measures = {str(layer): _measures(features, layer, seed) for layer in layers}
    return jsonable({"score": content, "measures": measures})


def _measured_layers(settings: StudySettings, layers: tuple[int, ...]) -> list[int]:
    if settings.measure_layers == "all":
        return list(layers)
    return sorted({layer_at(depth, len(layers)) for depth in DEPTHS})


def _measures(features: Features, layer: int, seed: int) -> dict[str, Any]:
    folds = cast(np.ndarray, features.folds)  # there: a study always has folds
    return transferability(features.layer(layer), features.labels, folds=folds, random_state=seed)


def _layer(moments: Moments, solution: LayerSolution) -> tuple[LayerScore, dict[str, list[Any]]]:
    """Return a layer's score with held-out shares, and its grid over shares of the width."""
    base = read_layer(solution)
    if not base.rank_v:
        raise NtpsError(f"layer {base.layer} has no next-token direction; the texts are too few or too short.")
    wanted = [min(max(1, round(share * base.d)), base.rank_v) for share in SHARES]
    ks = sorted({*base.curve["k_v"], *wanted})
    held = held_out_explained(moments, base.layer, solution.V.vectors, ks)
    grid: dict[str, list[Any]] = {
        "share": list(SHARES),
        "k_v": wanted,
        "ntps": [float(solution.table[k - 1, base.k_u - 1]) if base.k_u else math.nan for k in wanted],
        "explained": [float(solution.r2[k - 1]) for k in wanted],
        "retained": [_ratio(float(solution.r2[k - 1]), solution.ceiling) for k in wanted],
        "explained_heldout": [held.explained[ks.index(k)] for k in wanted],
    }
    return read_layer(solution, held_out=(ks, held)), grid


def _ratio(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else math.nan
