"""Probes on pooled features: what a reader of them can do, judged on texts they were not fitted on.

The linear probe is the one its users run (standardise, multinomial logistic regression with a cross-validated C) with
ridge regression on one-hot labels beside it for the error; k nearest neighbours and a small trained head go with it.
All are out of fold: every text is predicted by a probe that has not seen it. Statistics of the standardisation come
from the training texts alone. Measures that need no training stand in `ntps.scoring.transferability`.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import jsonable
from ntps.errors import NtpsError, in_range

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths of the logistic penalty, on standardised features
ALPHAS = tuple(float(10.0**e) for e in np.arange(-1, 6.5, 0.5))  # strengths of the ridge penalty
Folds = int | Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe reaches on texts it was not fitted on.

    Attributes:
        accuracy: Share of texts predicted right, in [0, 1].
        balanced_accuracy: Mean over classes of the share of their texts predicted right.
        macro_f1: Mean over classes of F1.
        above_majority: `accuracy - majority_rate`.
        majority_rate: Share of the most frequent class among the texts judged.
        r2: Share of the one-hot labels' variance that ridge regression explains out of fold; below 1, can be negative.
        mse: Mean squared error of ridge over texts and classes.
        c: Chosen C of the logistic regression in each fold.
        alpha: Chosen ridge penalty in each fold.
        per_fold: `accuracy`, `balanced_accuracy`, `macro_f1`, `r2`, `mse` in each fold.
        standard_errors: Standard deviation over folds / sqrt(folds) of each; for a single split `accuracy` has the
            binomial one and the others `nan`. Folds share training texts, so these are somewhat too small.
        n, d, n_classes: Texts judged, features, classes.
        folds: Number of folds.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    above_majority: float
    majority_rate: float
    r2: float
    mse: float
    c: tuple[float, ...]
    alpha: tuple[float, ...]
    per_fold: dict[str, tuple[float, ...]] = field(repr=False)
    standard_errors: dict[str, float]
    n: int
    d: int
    n_classes: int
    folds: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dictionary; `nan` becomes `None`."""
        return jsonable(vars(self))


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    folds: Folds = 5,
    cs: Sequence[float] = CS,
    inner_folds: int = 3,
    random_state: int = 0,
) -> ProbeResult:
    """Judge a linear probe out of fold.

    In every fold C is chosen by log loss over `inner_folds` folds of the training texts, from strong to weak penalty,
    each fit starting at the one before and the path ending when the loss has risen; the chosen C is fitted on all
    training texts. Log loss rather than accuracy, which ties on easy tasks. The ridge penalty is chosen by
    leave-one-out error in closed form. Accuracy, balanced accuracy and F1 are taken over all texts at once, not
    averaged over folds.

    A class absent from a fold's training texts is never predicted there, so its texts count as wrong; a class without
    any text does not exist. Columns that are constant on the training texts are zero after standardisation.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        folds: A number (stratified, seeded), a fold index per text (n,), or pairs `(train, test)` of index arrays: one
            pair is a plain train-test split.
        cs: Candidates for C, all positive.
        inner_folds: Folds of the choice of C; with a single candidate no choice is made.
        random_state: Seed of the folds.

    Raises:
        NtpsError: If shapes, values, labels or folds are unusable.
    """
    x, y = check_features(features, labels)
    pairs = make_folds(y, folds, random_state)
    in_range(inner_folds, 2, None, "inner_folds")
    if not len(cs) or not all(c > 0 and math.isfinite(c) for c in cs):
        raise NtpsError(f"cs is {tuple(cs)!r}; give at least one positive number.")
    k = int(y.max()) + 1
    names = ("accuracy", "balanced_accuracy", "macro_f1", "r2", "mse")
    per_fold: dict[str, list[float]] = {name: [] for name in names}
    predicted, truth, chosen_c, chosen_alpha, errors, variances = [], [], [], [], [], []
    for number, (train, test) in enumerate(pairs):
        with one_thread():
            scaled, held = standardise(x[train], x[test])
            c = choose_c(scaled, y[train], sorted(cs), inner_folds, random_state + number)
            guess = next(_logistic_path(scaled, y[train], [c], held)).argmax(1)
            alpha, error, variance = _ridge(scaled, held, np.eye(k)[y[train]], np.eye(k)[y[test]])
        for name, value in zip(
            names, (*class_scores(y[test], guess), 1 - error / variance, error / held.shape[0] / k), strict=True
        ):
            per_fold[name].append(value)
        predicted.append(guess)
        truth.append(y[test])
        chosen_c.append(float(c))
        chosen_alpha.append(alpha)
        errors.append(error)
        variances.append(variance)
    judged = np.concatenate(truth)
    accuracy, balanced, f1 = class_scores(judged, np.concatenate(predicted))
    majority = float(np.bincount(judged).max() / len(judged))
    spread = {name: _standard_error(values) for name, values in per_fold.items()}
    if len(pairs) == 1:
        spread["accuracy"] = math.sqrt(accuracy * (1 - accuracy) / len(judged))
    return ProbeResult(
        accuracy,
        balanced,
        f1,
        accuracy - majority,
        majority,
        1 - sum(errors) / sum(variances),
        sum(errors) / len(judged) / k,
        tuple(chosen_c),
        tuple(chosen_alpha),
        {name: tuple(values) for name, values in per_fold.items()},
        spread,
        len(judged),
        x.shape[1],
        k,
        len(pairs),
    )


def knn_accuracy(
    features: ArrayLike, labels: ArrayLike, *, n_neighbors: int = 5, folds: Folds = 5, random_state: int = 0
) -> float:
    """Out-of-fold accuracy of k nearest neighbours (Euclidean, on standardised features), in [0, 1].

    Standardising makes it invariant to the scale of each feature. Equal votes go to the class with the lowest index; a
    fold with fewer than `n_neighbors` training texts uses all of them.

    Raises:
        NtpsError: If shapes, values, labels or folds are unusable.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = check_features(features, labels)
    in_range(n_neighbors, 1, None, "n_neighbors")
    right = total = 0
    for train, test in make_folds(y, folds, random_state):
        scaled, held = standardise(x[train], x[test])
        model = KNeighborsClassifier(n_neighbors=min(n_neighbors, len(train)), algorithm="brute").fit(scaled, y[train])
        right += int((model.predict(held) == y[test]).sum())
        total += len(test)
    return right / total


def one_thread() -> Any:
    """Context in which BLAS and OpenMP use one thread.

    Fits here are thousands of small products. Spread over threads on a machine that has other work, their barriers wait
    for each other: measured with two cores, 41 s against 1 s.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def check_features(features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, d) in float32 or float64 and labels renumbered 0..k-1 without gaps.

    Raises:
        NtpsError: If features are not a finite (n, d) table, labels do not match, or fewer than two classes occur.
    """
    x, y = np.asarray(features), np.asarray(labels)
    if x.ndim != 2 or 0 in x.shape:
        raise NtpsError(f"features have shape {x.shape}; give a non-empty table (texts, features).")
    if y.ndim != 1 or len(y) != len(x):
        raise NtpsError(f"labels have shape {y.shape} for {len(x)} texts; give one class index per text.")
    if not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise NtpsError(f"features have dtype {x.dtype}; give real numbers.")
    if not np.issubdtype(y.dtype, np.integer):
        raise NtpsError(f"labels have dtype {y.dtype}; give class indices (integers).")
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32 if x.dtype == np.float16 else np.float64)
    if not np.isfinite(x).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise NtpsError(f"features are not finite at text {row}, feature {column}.")
    classes, y = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise NtpsError(f"all {len(x)} texts have class {classes[0]}; a probe needs at least two classes.")
    return x, y


def make_folds(labels: np.ndarray, folds: Folds, random_state: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, test) index pairs; see `linear_probe`. A number gives stratified folds, whatever the class sizes.

    Raises:
        NtpsError: If there are fewer texts than folds, fewer than two folds, indices out of range, or train and test
            overlap.
    """
    n = len(labels)
    if isinstance(folds, (int, np.integer)):
        if isinstance(folds, bool) or not 2 <= folds <= n:
            raise NtpsError(f"folds is {folds!r}; it must be between 2 and the number of texts, {n}.")
        shuffled = np.random.default_rng(random_state).permutation(n)
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        ids = np.empty(n, dtype=np.int64)
        ids[by_class] = np.arange(n) % folds
    elif len(folds) == n and np.ndim(folds[0]) == 0:
        ids = np.asarray(folds)
        if len(np.unique(ids)) < 2:
            raise NtpsError("folds names a single fold; give at least two different fold indices.")
    else:
        return [_check_pair(pair, n) for pair in folds]
    return [(np.flatnonzero(ids != i), np.flatnonzero(ids == i)) for i in np.unique(ids)]


def column_scaling(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, scale), each (d,): (x - mean) * scale has mean 0 and variance 1 on `train`, constant columns 0.

    Constant means: varies by no more than rounding of its largest value in the features' own precision, so the decision
    does not change with their scale.
    """
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    constant = spread <= 4 * np.finfo(train.dtype).eps * np.abs(train).max(0)
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give every column mean 0 and variance 1 on `train`, and apply the same to `test`; see `column_scaling`."""
    mean, scale = column_scaling(train)
    return (train - mean) * scale, (test - mean) * scale


def _check_pair(pair: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        train, test = (np.asarray(part) for part in pair)
        usable = all(p.ndim == 1 and np.issubdtype(p.dtype, np.integer) and len(p) for p in (train, test))
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise NtpsError("folds must be a number, a fold index per text, or pairs (train, test) of index arrays.")
    if min(train.min(), test.min()) < 0 or max(train.max(), test.max()) >= n:
        raise NtpsError(f"a fold holds an index outside 0..{n - 1}.")
    if np.intersect1d(train, test).size:
        raise NtpsError("train and test of a fold overlap; a probe must not be judged on its training texts.")
    return train, test


def choose_c(x: np.ndarray, y: np.ndarray, cs: list[float], folds: int, seed: int) -> float:
    """Return the C of smallest cross-validated loss of a logistic regression on standardised features (n, d)."""
    if len(cs) == 1 or len(np.unique(y)) < 2 or len(y) < folds:
        return cs[0]
    loss = np.full((folds, len(cs)), np.inf)
    for f, (train, test) in enumerate(make_folds(y, folds, seed)):
        best, floor = math.inf, np.finfo(np.float32).tiny
        for i, probability in enumerate(_logistic_path(x[train], y[train], cs, x[test], int(y.max()) + 1)):
            loss[f, i] = -np.log(np.maximum(probability[np.arange(len(test)), y[test]], floor)).mean()
            if loss[f, i] > 1.02 * best:  # past the minimum: weaker penalties only cost time
                break
            best = min(best, loss[f, i])
    return cs[int(loss.mean(0).argmin())]


def _logistic_path(
    x: np.ndarray, y: np.ndarray, cs: Sequence[float], test: np.ndarray, k: int = 0
) -> Iterator[np.ndarray]:
    """Yield class probabilities (len(test), k) along `cs`, each fit starting where the last one ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(y)
    k = k or int(present[-1]) + 1
    out = np.zeros((len(test), k))
    if len(present) == 1:
        out[:, present[0]] = 1
        yield from (out for _ in cs)
        return
    x, test = x.astype(np.float32), test.astype(np.float32)  # half the time, and far finer than the tolerance
    model = LogisticRegression(tol=1e-4, max_iter=300, warm_start=True)
    for c in cs:
        model.C = c
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a probe stopped at 300 steps is still a probe
            model.fit(x, y)
        out = np.zeros((len(test), k))
        out[:, present] = model.predict_proba(test)
        yield out


def _ridge(x: np.ndarray, test: np.ndarray, y: np.ndarray, y_test: np.ndarray) -> tuple[float, float, float]:
    """Penalty, summed squared error on test, and the error of predicting the training mean, of ridge regression.

    One eigendecomposition serves all penalties; leave-one-out residuals are r_i / (1 - h_i), h the hat matrix's
    diagonal (intercept included: the columns of x are centred).
    """
    mean = y.mean(0)
    centred, n = y - mean, len(x)
    if x.shape[1] <= n:
        values, basis = np.linalg.eigh(x.T @ x)
    else:
        values, left = np.linalg.eigh(x @ x.T)
        basis = x.T @ (left / np.sqrt(np.maximum(values, np.finfo(float).tiny)))
    keep = values > max(x.shape) * np.finfo(float).eps * max(values[-1], np.finfo(float).tiny)
    values, basis = values[keep], basis[:, keep]
    z = x @ basis
    moment, best = z.T @ centred, (math.inf, ALPHAS[0])
    for alpha in ALPHAS:
        hat = 1 / n + np.square(z) @ (1 / (values + alpha))
        residual = (centred - z @ (moment / (values + alpha)[:, None])) / np.maximum(1 - hat, 1e-12)[:, None]
        best = min(best, (float(np.square(residual).sum()), alpha))
    weights = basis @ (moment / (values + best[1])[:, None])
    return best[1], float(np.square(y_test - mean - test @ weights).sum()), float(np.square(y_test - mean).sum())


def class_scores(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, mean recall over the true classes, mean F1 over the classes that are true or guessed."""
    k = int(max(truth.max(), guess.max())) + 1
    right = np.bincount(truth[truth == guess], minlength=k)
    true, guessed = np.bincount(truth, minlength=k), np.bincount(guess, minlength=k)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    return (
        float(right.sum() / len(truth)),
        float((right / np.maximum(true, 1))[true > 0].mean()),
        float(f1[true + guessed > 0].mean()),
    )


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
