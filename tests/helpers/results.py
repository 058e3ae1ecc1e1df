"""Results made by hand, with numbers that look like real ones: for what shows results and computes none."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch

from ntps.finetune.settings import TrainSettings
from ntps.scoring.headline import best_layer
from ntps.scoring.learning import LearningCurve
from ntps.scoring.predictors import Predictor
from ntps.scoring.readouts import LayerChoice, Readout
from ntps.scoring.results import LayerScore, ScoreResult
from ntps.study.measure import StudySettings
from ntps.study.ranking import in_order
from ntps.study.ranking_results import HardText, LayerValue, RankedModel, Ranking, ThroughV
from ntps.study.records import SHARES, CellResult
from ntps.study.study import Study
from ntps.study.table import PROBE

EVIL = "<script>alert('x')</script>"
CURVE = LearningCurve(
    n=(123, 247, 494, 987), r2=(0.1234, 0.2345, 0.3456, 0.4567), standard_error=(0.04, 0.03, 0.02, 0.01),
    twice=0.5678, interval=(0.5432, 0.5924), gain_interval=(0.0912, 0.1310),
)  # fmt: skip
KS = [1, 2, 4, 8, 16]


def assert_same(found: Any, wanted: Any) -> None:
    """Check that results are equal, a missing number (NaN) to a missing one, which `==` says in some Pythons only."""
    np.testing.assert_equal(_plain(found), _plain(wanted))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def layer_score(layer: int, rng: np.random.Generator, *, held_out: bool = True, evidence: bool = False) -> LayerScore:
    ceiling, explained, ntps = np.sort(rng.uniform(0.05, 0.95, 3))[::-1].tolist()
    curve: dict[str, list[Any]] = {
        "k_v": KS,
        "ntps": [ntps * k / 16 for k in KS],
        "excess_loss": [0.5 - 0.03 * k for k in KS],
        "explained": [explained * (k / 16) ** 0.5 for k in KS],
    }
    extra: dict[str, Any] = {}
    if held_out:
        curve["explained_heldout"] = [value - 0.1 for value in curve["explained"]]
        extra |= {"explained_heldout": explained - 0.1, "ceiling_heldout": ceiling - 0.04}
        extra |= {"retained_heldout": (explained - 0.1) / (ceiling - 0.04), "accuracy_heldout": 0.5 + ceiling / 2}
    if evidence:
        null = {"mean": 0.2, "z": 3.21, "p_value": 0.01, "quantiles": [0.1, 0.2, 0.3]}
        extra["null"] = {"ntps": null, "explained": null}
        extra["interval"] = {
            "ntps": {"low": None, "high": None, "standard_error": 0.03},
            "explained_heldout": {"low": explained - 0.2, "high": explained, "standard_error": 0.05},
        }
        extra["control"] = {"ntps": 0.125, "explained": 0.2, "explained_heldout": 0.02, "ceiling_heldout": 0.1}
    return LayerScore(
        layer=layer,
        d=16,
        rank_m=16,
        rank_u=3,
        rank_v=16,
        k_u=3,
        k_v=4,
        ntps=ntps,
        chance=0.25,
        ntps_whitened=ntps,
        excess_loss=0.12345,
        bounds={"raw": (0.001, 12.3), "whitened": (0.05, 0.3)},
        explained=explained,
        ceiling=ceiling,
        retained=explained / ceiling,
        curve=curve,
        **extra,
    )


def readout(name: str, r2: float, rng: np.random.Generator, *, n: int = 40) -> Readout:
    """Out-of-fold errors of 40 texts in 5 folds with a given R^2."""
    errors = rng.uniform(0.5, 1.5, n)
    errors *= (1 - r2) * n / errors.sum()
    fold = np.arange(n) % 5
    loo_errors = torch.tensor([errors[fold != each].sum() for each in range(5)])
    return Readout(
        name=name, errors=errors, baseline=np.ones(n), groups=np.arange(n), origin="texts", loo_errors=loo_errors
    )


def best_of(layers: Sequence[LayerScore], rng: np.random.Generator) -> dict[str, Any]:
    """What follows from the layers' held-out values: best layer, choice, readouts, baselines, learning curve."""
    readouts = {
        name: tuple(readout(f"layer {scored.layer}", getattr(scored, field), rng) for scored in layers)
        for name, field in (("all", "ceiling_heldout"), ("v", "explained_heldout"))
    }
    numbers = [scored.layer for scored in layers]
    best, choice = best_layer(numbers, readouts["all"], np.arange(40) % 5, [])
    baselines = tuple(classifier(name, r2, rng) for name, r2 in (("logistic probe", 0.61), ("label frequencies", 0.0)))
    return {"best": best, "choice": choice, "readouts": readouts, "baselines": baselines, "learning": CURVE}


def classifier(name: str, r2: float, rng: np.random.Generator, *, n: int = 40) -> Predictor:
    """A classifier of 40 texts with a given R^2, whose third text is predicted wrongly."""
    row = readout(name, r2, rng, n=n)
    margins = np.where(np.arange(n) == 2, -0.4, 0.3)
    return Predictor(
        name=name, accuracy=0.7123, balanced_accuracy=0.6543, log_loss=0.5432, r2=row.r2, interval=row.interval(),
        accuracy_interval=(0.6543, 0.7654), readout=row, margins=margins, predicted=np.zeros(n, dtype=np.int64),
    )  # fmt: skip


def ranked_model(
    name: str, r2: float, rng: np.random.Generator, *, causal: bool = True, n_layers: int = 4, n: int = 40
) -> RankedModel:
    """A model of four layers, the third of which has a given R^2 and is the best."""
    readouts = [readout(name, r2 - 0.04 * abs(layer - 2), rng, n=n) for layer in range(n_layers)]
    values = [LayerValue(layer=layer, r2=row.r2, interval=row.interval()) for layer, row in enumerate(readouts)]
    choice = LayerChoice(layer=2, tied=(3,), readout=readouts[2], by_fold=np.full(n, 2))
    v = ThroughV(k_v=4, r2=r2 / 2, interval=(r2 / 2 - 0.1, r2 / 2 + 0.1), share=0.5, ntps=0.3, chance=0.25)
    return RankedModel(
        name=name, causal=causal, n_parameters=1234567, n_layers=n_layers, width=16, seconds=12.34,
        memory_bytes=1_500_000_000, n_truncated=3, choice=choice,
        layers=tuple(values), probe=classifier("logistic probe", r2 + 0.02, rng, n=n),
        through_v=v if causal else None, learning=CURVE,
    )  # fmt: skip


def make_ranking(
    r2: Mapping[str, float] | None = None,
    *,
    tfidf: float = 0.4,
    label_column: str = "label",
    n: int = 40,
    seed: int = 0,
) -> Ranking:
    """A ranking of models by their R^2; names that begin with "bert" are encoders, and one model could not be read."""
    rng = np.random.default_rng(seed)
    given = {"one": 0.7, EVIL: 0.6, "bert": 0.1} if r2 is None else r2
    judged = [ranked_model(name, value, rng, causal=not name.startswith("bert"), n=n) for name, value in given.items()]
    models, groups, behind = in_order(judged)
    return Ranking(
        task="task", label_column=label_column, classes=("a", EVIL), class_sizes=(n - n // 2, n // 2),
        n_texts=n, n_left_out=2, models=models,
        failed={"broken": f"no {EVIL}"}, groups=groups, behind=behind,
        baselines=(classifier("TF-IDF", tfidf, rng, n=n), classifier("label frequencies", 0.0, rng, n=n)),
        fresh_weights=ranked_model(f"{models[0].name}, random weights", 0.2, rng, n=n),
        hard_texts=(HardText(index=2, label=EVIL, predicted="a", margin=-0.4, text=f"a text {EVIL}"),),
        settings={"folds": 5, "seed": 0, "k_v": None},
    )  # fmt: skip


def score_result(
    *, model: str = "model", task: str = "task", n_layers: int = 5, seed: int = 0, **options: Any
) -> ScoreResult:
    """A result; `options` are those of `layer_score`, and `label_column`."""
    column = options.pop("label_column", "label")
    rng = np.random.default_rng(seed)
    layers = tuple(layer_score(layer, rng, **options) for layer in range(n_layers))
    found = best_of(layers, rng) if options.get("held_out", True) else {}
    return ScoreResult(
        layers=layers,
        convention="theory",
        n_texts=1234,
        n_tokens=56789,
        n_classes=3,
        settings={"folds": 5, "seed": seed, "rtol": None},
        metadata={"model": model, "task": task, "label_column": column, "classes": ["a", EVIL], "dtype": "float32"},
        **found,
    )


def make_study(
    *, models: tuple[str, ...] = ("one", "two"), n_tasks: int = 6, gains: bool = False, seed: int = 0
) -> Study:
    """A study of three layers whose scores go along with accuracy, and whose first model's last task failed."""
    rng = np.random.default_rng(seed)
    tasks = (*(f"miniworld/task{number}" for number in range(n_tasks - 1)), EVIL)
    cells = []
    for model in models:
        for task in tasks:
            known = float(rng.uniform(0.1, 0.9))
            place = {"model": model, "task": task, "seed": 0, "control": False, "key": "0" * 24, "status": "done"}
            cells.append({**place, "kind": "score", "score": _score_record(known, rng)})
            if gains:
                cells.append({**place, "kind": "gain", "gain": _gain_record(known, rng)})
    failed = {"status": "failed", "reason": f"no {EVIL}", "score": None, "gain": None}
    last = len(cells) // len(models) - 1
    cells[last] |= failed
    empty = {"reason": None, "traceback": None, "seconds": 1.0, "score": None, "gain": None}
    return Study(
        cells=tuple(CellResult.from_dict(empty | cell) for cell in cells),
        models=models,
        tasks=tasks,
        settings=StudySettings(limit=100, permutations=20, control=False),
        lora=TrainSettings(steps=4) if gains else None,
    )


def _score_record(known: float, rng: np.random.Generator) -> dict[str, Any]:
    accuracy = 0.5 + known / 2 + float(rng.normal(0, 0.02))
    measures = {"logme": known - 1, "h_score": 0.03, "h_score_shrunk": 0.03, "knn_above_majority": accuracy - 0.6}
    probe = dict.fromkeys(PROBE, 0.03) | {
        "accuracy": accuracy, "balanced_accuracy": accuracy, "majority_rate": 0.5, "above_majority": accuracy - 0.5,
    }  # fmt: skip
    layers = []
    for layer in range(3):
        value = min(known * (1 + layer) / 3 + float(rng.uniform(0, 0.05)), 1.0)
        shares = [value * share**0.3 for share in SHARES]
        layers.append(
            {"layer": layer, "d": 64, "k_u": 2, "k_v": 8, "ntps": value, "chance": 0.125, "explained": value,
             "explained_heldout": value - 0.05, "retained": 0.8, "ceiling_heldout": value + 0.02, "ntps_z": 2.0,
             "ntps_p": 0.01, "ceiling_heldout_z": 2.0, "ceiling_heldout_p": 0.01,
             "intervals": {"ceiling_heldout": [value - 0.1, value + 0.1],
                           "explained_heldout": [value - 0.1, value + 0.05]},
             "profile": {"share": list(SHARES), "k_v": [1, 2, 4, 8, 16, 32, 64], "ntps": shares, "explained": shares,
                         "retained": shares, "explained_heldout": shares},
             "measures": measures, "official": None}
        )  # fmt: skip
    counts = {"n_texts": 100, "n_scored": 50, "n_probed": 50, "n_tokens": 1000, "n_classes": 2}
    return counts | {"layers": layers, "held_back": 0.3 * (1 - known), "probe": probe, "provenance": {}}


def _gain_record(known: float, rng: np.random.Generator) -> dict[str, Any]:
    gain = 0.3 * (1 - known) + float(rng.normal(0, 0.03))
    side = {"ntps": known, "explained_heldout": known, "ceiling_heldout": known}
    return {
        "accuracy_before": 0.6, "accuracy_after": 0.6 + gain, "gain": gain, "standard_error": 0.02, "n_test": 50,
        "best_step": 4, "saved": max(0.0, gain), "next_token_loss_before": 2.0, "next_token_loss_after": 2.1,
        "layers": {str(layer): {"before": side, "after": side} for layer in range(3)},
    }  # fmt: skip
