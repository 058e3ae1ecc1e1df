"""Probes on pooled features: linear and nearest-neighbour classifiers, judged on held-out texts.

The linear probe is the usual one (standardise, multinomial logistic regression with a cross-validated C); ridge
regression on one-hot labels gives a squared error beside it; k nearest neighbours need no training. Every text is
predicted by a probe that has not seen it, and standardised by the training texts alone.
Measures that need no probe are in `ntps.scoring.measures`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import Record
from ntps.core.heldout import r2_of
from ntps.errors import NtpsError, whole
from ntps.scoring.labels import assign_folds

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths of the logistic penalty, on standardised features
ALPHAS = tuple(float(10.0**e) for e in np.arange(-1, 6.5, 0.5))  # strengths of the ridge penalty
_INNER_FOLDS = 3  # that choose C, fewer where the largest class is smaller
_NEIGHBOURS = 5
Folds = int | str | Iterable[Any]  # a number or "auto", a fold index per text, or pairs (train, test)


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Record):
    """How well a linear probe predicts texts it was not fitted on.

    Attributes:
        accuracy: Share of texts whose class is predicted right, in [0, 1].
        balanced_accuracy: Mean over classes of the share of their texts predicted right, in [0, 1].
        macro_f1: Mean over classes of F1, in [0, 1].
        above_majority: `accuracy - majority_rate`.
        majority_rate: Share of the most frequent class among the texts judged.
        r2: Share of the one-hot labels' variance that ridge regression explains out of fold; at most 1, can be
            negative, `nan` if the labels of the texts judged do not vary about the training mean.
        mse: Mean squared error of ridge regression over texts and classes.
        c: C of the logistic regression chosen in each fold.
        alpha: Ridge penalty chosen in each fold.
        per_fold: `accuracy`, `balanced_accuracy`, `macro_f1`, `r2` and `mse` of each fold.
        standard_errors: Standard deviation over folds / sqrt(folds) of each; for a single split `accuracy` has the
            binomial one and the others `nan`. Folds share training texts, so these are somewhat too small.
        n: Number of texts judged.
        d: Number of features.
        n_classes: Number of classes.
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


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    folds: Folds = "auto",
    cs: Sequence[float] = CS,
    random_state: int = 0,
) -> ProbeResult:
    """Judge a linear probe out of fold.

    In every fold, C is chosen by log loss (accuracy ties on easy tasks) over three folds of the training texts (fewer
    where the largest class is smaller), and the probe is then fitted on all of them; see `choose_c`. The ridge penalty
    is chosen by leave-one-out error. Accuracy, balanced accuracy and F1 are computed over all texts at once, not
    averaged over folds.

    A class absent from a fold's training texts is never predicted there, so its texts count as wrong; a class without
    any text does not exist. Columns that are constant on the training texts are zero after standardisation.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        folds: Number of stratified, seeded folds (`"auto"`: 5, or the size of the largest class if that is smaller), a
            fold index per text (n,), or pairs `(train, test)` of index arrays; one pair is a plain train-test split.
        cs: Candidates for C, all positive.
        random_state: Seed of the folds.

    Raises:
        NtpsError: If shapes, values, labels or folds are unusable.
    """
    x, y = check_features(features, labels)
    pairs = make_folds(y, folds, random_state)
    if not len(cs) or not all(c > 0 and math.isfinite(c) for c in cs):
        raise NtpsError(f"cs is {tuple(cs)!r}; give at least one positive number.")
    n_classes = int(y.max()) + 1
    targets = np.eye(n_classes)[y]
    judged, chosen_c, chosen_alpha = [], [], []
    for number, (train, test) in enumerate(pairs):
        with one_thread():
            x_train, x_test = standardize(x[train], x[test])
            c = choose_c(x_train, y[train], sorted(cs), random_state + number)
            probabilities = next(logistic_path(x_train, y[train], [c], x_test, n_classes))
            alpha, fitted = ridge(x_train, targets[train], x_test)
        squared_error = np.square(targets[test] - fitted).mean(1)
        squared_deviation = np.square(targets[test] - targets[train].mean(0)).mean(1)
        judged.append((y[test], probabilities.argmax(1), squared_error, squared_deviation))
        chosen_c.append(float(c))
        chosen_alpha.append(alpha)
    all_judged = [np.concatenate(arrays) for arrays in zip(*judged, strict=True)]
    overall = _metrics(*all_judged)
    by_fold = [_metrics(*arrays) for arrays in judged]
    per_fold = {name: tuple(metrics[name] for metrics in by_fold) for name in overall}
    standard_errors = {name: _standard_error(values) for name, values in per_fold.items()}
    accuracy, truth = overall["accuracy"], all_judged[0]
    if len(pairs) == 1:
        standard_errors["accuracy"] = math.sqrt(accuracy * (1 - accuracy) / len(truth))
    majority_rate = float(np.bincount(truth).max() / len(truth))
    return ProbeResult(
        **overall,
        above_majority=accuracy - majority_rate,
        majority_rate=majority_rate,
        c=tuple(chosen_c),
        alpha=tuple(chosen_alpha),
        per_fold=per_fold,
        standard_errors=standard_errors,
        n=len(truth),
        d=x.shape[1],
        n_classes=n_classes,
        folds=len(pairs),
    )


def training_probe(features: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Fit the probes of the paper's Figure 2 and judge them on the texts they were fitted on, as its code does.

    Both read standardised features: a logistic regression (saga, C = 1, tolerance 0.01, 1,000 iterations) and a linear
    regression of one-hot labels (`linear_sklearn.py` in the authors' repository). With more features than texts any
    labels are predicted without error; `linear_probe` is the probe to trust.

    Args:
        features: (n, d), finite.
        labels: (n,) classes; at least two different.

    Returns:
        `training_accuracy`, in [0, 1], and `training_error`, the mean squared error over texts and classes.

    Raises:
        NtpsError: If features are not finite, or a single class occurs.
    """
    from sklearn.linear_model import LinearRegression, LogisticRegression

    x, y = check_features(features, labels)
    x = standardize(x, x)[0]
    one_hot = np.eye(int(y.max()) + 1)[y]
    with one_thread(), quiet_fits():
        logistic = LogisticRegression(solver="saga", C=1, tol=0.01, max_iter=1000, random_state=0).fit(x, y)
        residuals = one_hot - LinearRegression().fit(x, one_hot).predict(x)
    return {"training_accuracy": float(logistic.score(x, y)), "training_error": float(np.square(residuals).mean())}


def knn_accuracy(features: ArrayLike, labels: ArrayLike, *, folds: Folds = "auto", random_state: int = 0) -> float:
    """Out-of-fold accuracy of the five nearest neighbours (Euclidean, on standardised features), in [0, 1].

    Standardising makes it invariant to the scale of each feature. Equal votes go to the class with the lowest index.
    A fold with fewer training texts than neighbours uses all of them.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        folds: As in `linear_probe`.
        random_state: Seed of the folds.

    Raises:
        NtpsError: If shapes, values, labels or folds are unusable.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = check_features(features, labels)
    n_correct = n_judged = 0
    for train, test in make_folds(y, folds, random_state):
        x_train, x_test = standardize(x[train], x[test])
        model = KNeighborsClassifier(n_neighbors=min(_NEIGHBOURS, len(train)), algorithm="brute").fit(x_train, y[train])
        n_correct += int((model.predict(x_test) == y[test]).sum())
        n_judged += len(test)
    return n_correct / n_judged


def one_thread() -> AbstractContextManager[Any]:
    """Context in which BLAS and OpenMP use one thread, whatever was set; afterwards as many as before.

    A fit takes thousands of small products. Spread over threads on a busy machine, these wait for each other: measured
    with two cores, 41 s against 1 s.
    """
    return _thread_pools().limit(limits=1)


@cache
def _thread_pools() -> Any:
    """Return the thread pools of the libraries that are loaded; looking for them takes longer than a small fit."""
    import sklearn.linear_model  # noqa: F401  loads what there is to find
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def check_features(features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, d) in float32 or float64 and labels renumbered 0..k-1 without gaps.

    Raises:
        NtpsError: If features are not a finite (n, d) table, labels do not match, or fewer than two classes occur.
    """
    x, y = check_finite(features), np.asarray(labels)
    if y.ndim != 1 or len(y) != len(x):
        raise NtpsError(f"labels have shape {y.shape} for {len(x)} texts; give one class index per text.")
    if not np.issubdtype(y.dtype, np.integer):
        raise NtpsError(f"labels have dtype {y.dtype}; give class indices (integers).")
    classes, y = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise NtpsError(f"all {len(x)} texts have class {classes[0]}; a probe needs at least two classes.")
    return x, y


def check_finite(features: ArrayLike) -> np.ndarray:
    """Return features (n, d) in float32 or float64.

    Raises:
        NtpsError: If they are not a finite (n, d) table of real numbers.
    """
    x = np.asarray(features)
    if x.ndim != 2 or 0 in x.shape:
        raise NtpsError(f"features have shape {x.shape}; give a non-empty table (texts, features).")
    if not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise NtpsError(f"features have dtype {x.dtype}; give real numbers.")
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32 if x.dtype == np.float16 else np.float64)
    if not np.isfinite(x).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise NtpsError(f"features are not finite at text {row}, feature {column}.")
    return x


def make_folds(labels: np.ndarray, folds: Folds, random_state: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs (train, test) of index arrays.

    Args:
        labels: Class indices (n,), from 0.
        folds: As in `linear_probe`.
        random_state: Seed of stratified folds, see `assign_folds`.

    Raises:
        NtpsError: If a number is not between 2 and the size of the largest class, there is a single fold, an index is
            out of range, or train and test overlap.
    """
    n = len(labels)
    if isinstance(folds, int | np.integer) or (isinstance(folds, str) and folds == "auto"):
        largest = int(np.bincount(labels).max())
        if largest < 2:
            raise NtpsError(f"each of the {n} texts has a class of its own; folds need a class of at least two texts.")
        if folds != "auto":
            whole(folds, 2, largest, "folds")
        fold_of = np.asarray(assign_folds(labels, folds, seed=random_state))
    else:
        entries = list(folds) if isinstance(folds, Iterable) and not isinstance(folds, str) else []
        if not entries:
            _refuse_folds()
        if len(entries) != n or isinstance(entries[0], tuple | list) or np.ndim(entries[0]) > 0:
            return [_check_pair(pair, n) for pair in entries]
        fold_of = np.asarray(entries)
        if len(np.unique(fold_of)) < 2:
            raise NtpsError("folds names a single fold; give at least two different fold indices.")
    return [(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in np.unique(fold_of)]


def _refuse_folds() -> NoReturn:
    raise NtpsError("folds must be a number, 'auto', a fold index per text, or pairs (train, test) of index arrays.")


def _check_pair(pair: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index arrays (train, test) of one fold of n texts."""
    try:
        train, test = (np.asarray(indices) for indices in pair)
    except (TypeError, ValueError):
        _refuse_folds()
    if not all(i.ndim == 1 and np.issubdtype(i.dtype, np.integer) and len(i) for i in (train, test)):
        _refuse_folds()
    if min(train.min(), test.min()) < 0 or max(train.max(), test.max()) >= n:
        raise NtpsError(f"folds has an index outside 0..{n - 1}.")
    if np.intersect1d(train, test).size:
        raise NtpsError("train and test of a fold overlap; a probe must not be judged on its training texts.")
    return train, test


def column_scaling(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, scale), each (d,): (x - mean) * scale has mean 0 and variance 1 on `train`, constant columns 0.

    A column counts as constant if its range is no more than the rounding error of its largest value in the features'
    own precision, so the decision does not depend on their scale.
    """
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    low, high = train.min(0).astype(np.float64), train.max(0).astype(np.float64)
    constant = high - low <= 4 * np.finfo(train.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale columns to mean 0 and variance 1 on `train`, and apply the same map to `test`; see `column_scaling`."""
    mean, scale = column_scaling(train)
    return (train - mean) * scale, (test - mean) * scale


def choose_c(x: np.ndarray, y: np.ndarray, cs: Sequence[float], seed: int) -> float:
    """Return the C with the smallest cross-validated log loss of a logistic regression.

    Within a fold C goes from strong to weak penalty, each fit starting from the one before, and stops once the loss is
    2% above its minimum. scikit-learn's `LogisticRegressionCV` fits all candidates: with the final fit included it
    chose the same C but took 1.3 to 1.5 times as long on (1000, 640) features that tell 2 or 8 classes apart and 4
    times as long on noise; on (800, 128) states of a bundled model and its random-weight control, two layers by four
    tasks, it took 2.5 times as long in total (from 1.2 to 5.3 times).

    Args:
        x: (n, d), standardised.
        y: Class indices (n,).
        cs: Candidates, ascending.
        seed: Seed of the folds.

    Returns:
        The chosen C; the smallest candidate if there is nothing to choose from, or no text to choose by.
    """
    sizes = np.bincount(y)
    folds = min(_INNER_FOLDS, int(sizes.max()))
    if len(cs) == 1 or folds < 2 or np.count_nonzero(sizes) < 2:
        return cs[0]
    loss = np.full((folds, len(cs)), np.inf)
    smallest = np.finfo(np.float32).tiny
    for losses, (train, test) in zip(loss, make_folds(y, folds, seed), strict=True):
        for index, probabilities in enumerate(logistic_path(x[train], y[train], cs, x[test], len(sizes))):
            losses[index] = -np.log(np.maximum(probabilities[np.arange(len(test)), y[test]], smallest)).mean()
            if losses[index] > 1.02 * losses.min():  # past the minimum: weaker penalties only cost time
                break
    return cs[int(loss.mean(0).argmin())]


@contextmanager
def quiet_fits() -> Iterator[None]:
    """Fit logistic regressions without warnings: one stopped early is still a probe, and classes may be many."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def logistic_path(
    x: np.ndarray, y: np.ndarray, cs: Sequence[float], test: np.ndarray, n_classes: int
) -> Iterator[np.ndarray]:
    """Yield class probabilities (len(test), n_classes) for each C, each fit starting from the one before."""
    from sklearn.linear_model import LogisticRegression

    present = np.unique(y)
    x, test = x.astype(np.float32), test.astype(np.float32)  # half the time, and far finer than the tolerance
    model = LogisticRegression(tol=1e-4, max_iter=300, warm_start=True)
    for c in cs:
        probabilities = np.zeros((test.shape[0], n_classes))
        if len(present) == 1:
            probabilities[:, present] = 1
        else:
            with quiet_fits():
                model.set_params(C=c).fit(x, y)
            probabilities[:, present] = model.predict_proba(test)
        yield probabilities


def ridge(x: np.ndarray, targets: np.ndarray, test: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit ridge regression with an intercept, its penalty chosen by leave-one-out error over all targets.

    Args:
        x: (n, d).
        targets: (n, k).
        test: (m, d).

    Returns:
        The penalty, one of `ALPHAS`, and the predictions (m, k) for `test`.
    """
    from sklearn.linear_model import RidgeCV

    # the default may decompose the covariance where n > d, which took 3.5 times as long as the SVD at (800, 640)
    model = RidgeCV(alphas=ALPHAS, gcv_mode="svd" if len(x) > x.shape[1] else "eigen")
    with np.errstate(invalid="ignore"):  # a single training text has no leave-one-out error
        model.fit(x, targets)
    return float(model.alpha_), model.predict(test)


def class_scores(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, mean recall over the true classes, and mean F1 over the classes that are true or predicted."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes that are only predicted; many classes in a small fold
        return (
            float(accuracy_score(truth, predicted)),
            float(balanced_accuracy_score(truth, predicted)),
            float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
        )


def _metrics(
    truth: np.ndarray, predicted: np.ndarray, squared_error: np.ndarray, squared_deviation: np.ndarray
) -> dict[str, float]:
    """Return the metrics of texts from their classes, predicted classes, and mean squares over classes, each (n,)."""
    accuracy, balanced_accuracy, macro_f1 = class_scores(truth, predicted)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "r2": r2_of(squared_error, squared_deviation),
        "mse": float(squared_error.mean()),
    }


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
