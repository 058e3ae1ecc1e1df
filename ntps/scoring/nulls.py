"""What a score means beside nothing: labels shuffled, weights never trained.

- `permutation_null`: NTPS and explained share under shuffled labels, with z and p. No second pass over the texts: of
  all moments only X = E[x y^T] depends on which label goes with which text, and X of many permutations is one product
  of the pooled features with their shuffled one-hot labels.
- `random_control`: the same numbers for the same architecture with fresh weights, side by side.

A permutation asks whether labels matter at all, and keeps the features as they are; random weights ask whether
pretraining does. With few texts the first is the level that in-sample shares reach by fitting noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ntps._files import jsonable
from ntps.core.encoders import POOLED_RTOL, nested_basis, whitening
from ntps.core.moments import LayerMoments, Moments
from ntps.core.solve import LayerSolution, read_layer, solve_layer
from ntps.errors import NtpsError, in_range
from ntps.models.features import Features
from ntps.scoring.intervals import INTERVALS
from ntps.scoring.results import ScoreResult

if TYPE_CHECKING:
    import pandas as pd

CONTROLLED = ("ntps", "explained", "retained", "ceiling", "explained_heldout", "ceiling_heldout")
_BLOCK = 8_000_000  # numbers of one product held at once
_TIE = 1e-9  # a permuted value this close to the observed one counts as equal to it


@dataclass(frozen=True)
class Null:
    """One quantity beside its values under shuffled labels.

    Attributes:
        observed: The value with the labels as they are.
        mean: Mean under shuffled labels: what fitting noise reaches.
        std: Standard deviation under shuffled labels.
        z: (observed - mean) / std; NaN when the null does not vary.
        p_value: One-sided (large is evidence), (1 + hits) / (1 + permutations), in (0, 1].
        quantiles: The 5, 50 and 95 % points of the null.
        values: All permuted values (B,).
    """

    observed: float
    mean: float
    std: float
    z: float
    p_value: float
    quantiles: tuple[float, float, float]
    values: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values without the array; NaN becomes `None`."""
        row = {key: value for key, value in vars(self).items() if key != "values"}
        return jsonable(row)


@dataclass(frozen=True)
class LayerNull:
    """The permutation null of one layer, for `ntps` and `explained` (in sample), at ranks k_u and k_v."""

    layer: int
    k_u: int
    k_v: int
    n_permutations: int
    ntps: Null
    explained: Null

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        row = {"layer": self.layer, "k_u": self.k_u, "k_v": self.k_v, "n_permutations": self.n_permutations}
        return {**row, "ntps": self.ntps.to_dict(), "explained": self.explained.to_dict()}


def permutation_null(
    moments: Moments,
    features: Features,
    *,
    layers: Sequence[int] | None = None,
    k_u: int | None = None,
    k_v: int | None = None,
    n_permutations: int = 200,
    center: bool = False,
    seed: int = 0,
    solutions: dict[int, LayerSolution] | None = None,
) -> tuple[LayerNull, ...]:
    """Score shuffled labels.

    V, M and the label frequencies stay; X is computed for all permutations at once. Whitened first (A = W^T X, r x c),
    the perception encoder of a permutation needs only the c x c Gram of A: with A^T A = E diag(lambda) E^T,
    U = W A E lambda^(-1/2), so ||P U||^2 and ||U||^2 are traces of c x c matrices.

    Args:
        moments: From `ntps.models.passes.collect(..., keep_features=True)`.
        features: The pooled features of the same pass, float16 or wider.
        layers: Layer numbers; all of the features by default.
        k_u: Perception rank, as in `ntps.score`.
        k_v: Next-token rank, as in `ntps.score`.
        n_permutations: At least 1; the smallest p-value is 1 / (n_permutations + 1).
        center: Solve U from centred moments, as in `ntps.score`. Explained is always centred.
        seed: Seed of the permutations; all layers see the same ones.
        solutions: Layers solved before with the same `center`, by number.

    Returns:
        One `LayerNull` a layer.

    Raises:
        NtpsError: If features and moments are of different texts, or an option is out of range.
    """
    in_range(n_permutations, 1, None, "n_permutations")
    if len(features.labels) != moments.n_texts or features.values.shape[2] != moments.width:
        raise NtpsError(
            f"the features are {len(features.labels)} texts by {features.values.shape[2]} and the moments "
            f"{moments.n_texts} by {moments.width}; both must come from one pass, collect(..., keep_features=True)."
        )
    labels = shuffled_labels(features.labels, n_permutations, seed=seed)
    found = []
    for layer in features.layers if layers is None else layers:
        view = moments.layer(layer)
        solution = (solutions or {}).get(layer) or solve_layer(view, center=center)
        read = read_layer(solution, k_u=k_u, k_v=k_v)
        ntps, explained = _layer_values(view, solution, features.layer(layer), labels, read.k_u, read.k_v, center)
        found.append(LayerNull(layer, read.k_u, read.k_v, n_permutations, against_null(ntps), against_null(explained)))
    return tuple(found)


def shuffled_labels(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Return (count + 1, n) labels: the first row as given, the others shuffled."""
    rng = np.random.default_rng(seed)
    return np.vstack([labels[None], rng.permuted(np.broadcast_to(labels, (count, len(labels))), axis=1)])


def against_null(values: np.ndarray) -> Null:
    """Set the first value against the others."""
    observed, null = float(values[0]), values[1:]
    if not np.isfinite(values).all():
        nan = math.nan
        return Null(observed, nan, nan, nan, nan, (nan, nan, nan), null)
    spread = float(null.std(ddof=1)) if len(null) > 1 else math.nan
    mean = float(null.mean())
    hits = int(np.count_nonzero(null >= observed - _TIE * max(abs(observed), _TIE)))
    z = (observed - mean) / spread if spread > _TIE * max(abs(mean), abs(observed)) else math.nan
    low, middle, high = (float(q) for q in np.quantile(null, (0.05, 0.5, 0.95)))
    return Null(observed, mean, spread, z, (1 + hits) / (1 + len(null)), (low, middle, high), null)


def _layer_values(
    view: LayerMoments,
    solution: LayerSolution,
    values: np.ndarray,
    labels: np.ndarray,
    k_u: int,
    k_v: int,
    center: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """NTPS and explained share (B + 1,) of each row of `labels`."""
    n, c = len(values), view.X.shape[1]
    x = torch.from_numpy(np.asarray(values, dtype=np.float64))
    middle, M = view.centered(), solution.U.whitening
    # The tolerances of `solve_layer`, so that the first row gives the reported score.
    scale = M.largest if not center else whitening(view.M, rtol=POOLED_RTOL, max_rank=view.n).largest
    centred = M if center else whitening(middle.M, rtol=POOLED_RTOL, max_rank=max(view.n - 1, 0), scale=scale)
    shifted = x - view.mean_x
    perception = (shifted if center else x) @ M.whiten  # (n, r): whitened, so that no direction drowns in another
    inside = shifted @ centred.whiten @ nested_basis(centred.half @ solution.V.vectors[:, :k_v])  # (n, k_v)
    basis = nested_basis(solution.V.vectors[:, :k_v])
    variance = float(middle.yy.trace())
    step = max(1, _BLOCK // (c * max(n, view.d)))
    ntps, explained = [], []
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        onehot = torch.nn.functional.one_hot(torch.from_numpy(part).T.contiguous(), c)  # (n, B, c)
        y = onehot.reshape(n, -1).to(torch.float64) / n
        centred_y = y - y.mean(0)
        explained.append((inside.T @ centred_y).square().reshape(k_v, -1, c).sum((0, 2)) / variance)
        whitened = perception.T @ (centred_y if center else y)
        ntps.append(_ntps(whitened, M.whiten, basis, c, k_u))
    return torch.cat(ntps).numpy(), torch.cat(explained).clamp(0.0, 1.0).numpy()


def _ntps(A: Tensor, whiten: Tensor, basis: Tensor, c: int, k_u: int) -> Tensor:
    """NTPS (B,) from whitened cross moments A (r, B c), with the first k_u directions of each."""
    if k_u == 0 or not basis.numel():
        return torch.full((A.shape[1] // c,), math.nan, dtype=A.dtype)
    plain = whiten @ A
    grams = []
    for matrix in (A, plain, basis.T @ plain):
        stacked = matrix.reshape(matrix.shape[0], -1, c).permute(1, 2, 0)  # (B, c, rows)
        grams.append(stacked @ stacked.transpose(1, 2))
    eigenvalues, vectors = torch.linalg.eigh(grams[0])
    eigenvalues, vectors = eigenvalues[:, -k_u:], vectors[:, :, -k_u:]
    keep = eigenvalues > 1e-12 * eigenvalues[:, -1:]
    weights = torch.where(keep, 1 / torch.where(keep, eigenvalues, 1.0), 0.0)
    lengths, inside = (((gram @ vectors) * vectors).sum(1).mul(weights).sum(1) for gram in grams[1:])
    return (inside / lengths).clamp(0.0, 1.0)


def check_control(result: ScoreResult, control: ScoreResult) -> None:
    """See that two results are of the same texts and layers.

    Raises:
        NtpsError: If they are not.
    """
    tasks = [r.metadata.get("task_fingerprint") for r in (result, control)]
    if tasks[0] != tasks[1]:
        raise NtpsError(f"{result.task} and {control.task} are different texts or labels; score both on one task.")
    layers = [[scored.layer for scored in r.layers] for r in (result, control)]
    if layers[0] != layers[1]:
        raise NtpsError(f"layers {layers[0]} and {layers[1]} differ; the control must be of the same architecture.")


def random_control(result: ScoreResult, control: ScoreResult) -> "pd.DataFrame":
    """Set a model's numbers beside those of its architecture with fresh weights, a row a layer.

    Args:
        result: The pretrained model's.
        control: Of `load_model(..., random_weights=True)`, or of a checkpoint before training, on the same task.

    Returns:
        Columns `layer`, and for `ntps`, `explained`, `retained` and, with folds, `explained_heldout` three each: the
        value, `*_random`, and `*_gain`, their difference.

    Raises:
        NtpsError: If the two are of different tasks or layers.
    """
    import pandas as pd

    check_control(result, control)
    names = [*INTERVALS, *(["explained_heldout"] if result.held_out and control.held_out else [])]
    rows = []
    for own, other in zip(result.layers, control.layers, strict=True):
        row: dict[str, Any] = {"layer": own.layer}
        for name in names:
            value, random = getattr(own, name), getattr(other, name)
            row |= {name: value, f"{name}_random": random, f"{name}_gain": value - random}
        rows.append(row)
    return pd.DataFrame(rows)
