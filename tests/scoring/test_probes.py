"""Probes and transferability measures against independent computations."""

import json
import math

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntps.errors import NtpsError
from ntps.scoring.labels import assign_folds
from ntps.scoring.measures import h_score, logme, reduced_rank_r2, spectrum
from ntps.scoring.probes import (
    ALPHAS,
    CS,
    ProbeResult,
    check_features,
    choose_c,
    class_scores,
    column_scaling,
    knn_accuracy,
    linear_probe,
    make_folds,
    one_thread,
    ridge,
    standardize,
    training_probe,
)


def planted(n=200, d=12, classes=3, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.standard_normal((n, d)) + (3 / noise) * np.eye(classes, d)[y]
    return x @ rng.standard_normal((d, d)), y


# ---- LogME -------------------------------------------------------------------------------------------------------


def dense_evidence(f, y, log_alpha, log_beta):
    """log p(y | alpha, beta) / n as a Gaussian density with an n x n covariance: no SVD, no d x d determinant."""
    n = len(y)
    cov = np.eye(n) * np.exp(-log_beta) + f @ f.T * np.exp(-log_alpha)
    _, logdet = np.linalg.slogdet(cov)
    return -(n * math.log(2 * math.pi) + logdet + y @ np.linalg.solve(cov, y)) / 2 / n


def brute_logme(f, y):
    """Numerical maximisation of the dense evidence over both precisions, from several starts."""
    best = []
    for c in np.unique(y):
        column = (y == c).astype(float)
        scores = []
        for start in ((0, 0), (3, 3), (-3, 3), (6, 0)):
            result = minimize(
                lambda p, column=column: -dense_evidence(f, column, *np.clip(p, -30, 30)),
                start,
                method="Nelder-Mead",
                options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 4000},
            )
            scores.append(-result.fun)
        best.append(max(scores))
    return float(np.mean(best))


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 5, 2), (60, 40, 4), (30, 50, 2), (20, 100, 3)])
@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_logme_is_the_maximum_of_the_dense_evidence(n, d, classes, signal):
    rng = np.random.default_rng(n + d)
    y = np.arange(n) % classes
    f = rng.standard_normal((n, d)) + signal * np.eye(classes, d)[y] + 0.3
    assert logme(f, y) == pytest.approx(brute_logme(f, y), abs=2e-6)


def weight_space_evidence(f, y, alpha, beta, *, all_directions):
    """The evidence as code that works with the singular values writes it; `all_directions` decides the determinant."""
    n, d = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma, z = s**2, u.T @ y
    m2 = np.sum(sigma * z**2 / (sigma + alpha / beta) ** 2)
    res = np.sum((z / (1 + sigma * beta / alpha)) ** 2) + y @ y - z @ z
    padded = np.concatenate([sigma, np.zeros(max(d - len(sigma), 0) if all_directions else 0)])
    total = d * math.log(alpha) + n * math.log(beta) - np.log(alpha + beta * padded).sum() - beta * res - alpha * m2
    return (total - n * math.log(2 * math.pi)) / 2 / n


def test_logme_with_fewer_texts_than_features_needs_the_full_determinant():
    """Why public versions disagree: without the d - n empty directions, (d - n) log(alpha) / 2n is left over."""
    rng = np.random.default_rng(1)
    n, d = 25, 300
    f, y = rng.standard_normal((n, d)) * 0.05, (np.arange(n) % 2).astype(float)
    alpha, beta = 7.0, 11.0
    truth = dense_evidence(f, y, math.log(alpha), math.log(beta))
    assert weight_space_evidence(f, y, alpha, beta, all_directions=True) == pytest.approx(truth, abs=1e-10)
    short = weight_space_evidence(f, y, alpha, beta, all_directions=False)
    assert short - truth == pytest.approx((d - n) * math.log(alpha) / 2 / n)
    assert short > 5 > 0 > truth  # the same data, alpha and beta: an artefact, not evidence
    assert logme(f, y.astype(int)) == pytest.approx(brute_logme(f, y.astype(int)), abs=2e-6)
    # with more texts than features the two forms are one
    g = f[:, :10]
    assert weight_space_evidence(g, y, alpha, beta, all_directions=False) == pytest.approx(
        dense_evidence(g, y, math.log(alpha), math.log(beta))
    )


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e3])
def test_logme_does_not_depend_on_scale_rotation_copies_or_empty_columns(scale):
    x, y = planted(50, 20)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0]
    value = logme(x, y)
    assert logme(x * scale, y) == pytest.approx(value, abs=1e-9)
    assert logme(x @ q, y) == pytest.approx(value, abs=1e-9)
    assert logme(np.hstack([x, x]), y) == pytest.approx(value, abs=1e-9)  # F F^T doubles, alpha absorbs it
    assert logme(np.hstack([x, np.zeros((50, 7))]), y) == pytest.approx(value, abs=1e-9)


def test_logme_of_exact_labels_is_unbounded_and_of_zero_features_refused():
    y = np.arange(30) % 3
    assert logme(np.eye(3)[y], y) == math.inf
    with pytest.raises(NtpsError, match="all features are zero"):
        logme(np.zeros((30, 4)), y)


# ---- H-score and reduced-rank regression ---------------------------------------------------------------------------


def h_by_definition(x, y):
    g = np.stack([x[y == y[i]].mean(0) for i in range(len(y))])
    return float(np.trace(np.linalg.pinv(np.cov(x, rowvar=False), rcond=1e-10) @ np.cov(g, rowvar=False)))


@pytest.mark.parametrize(("n", "d"), [(200, 12), (40, 12), (15, 30)])
def test_h_score_is_its_definition(n, d):
    x, y = planted(n, d)
    assert h_score(x, y) == pytest.approx(h_by_definition(x, y), rel=1e-7)
    if n < d:
        assert h_score(x, y) == pytest.approx(len(np.unique(y)) - 1)  # saturates: why shrinkage exists


@pytest.mark.parametrize(("n", "d"), [(200, 12), (15, 30)])
def test_shrunk_h_score_is_its_definition(n, d):
    from sklearn.covariance import LedoitWolf

    x, y = planted(n, d)
    lw = LedoitWolf().fit(x)
    g = np.stack([x[y == y[i]].mean(0) for i in range(n)])
    between = np.cov(g, rowvar=False, bias=True)
    expected = (1 - lw.shrinkage_) * np.trace(np.linalg.inv(lw.covariance_) @ between)
    assert h_score(x, y, shrinkage="ledoit-wolf") == pytest.approx(expected, rel=1e-9)
    assert h_score(100 * x, y, shrinkage="ledoit-wolf") == pytest.approx(expected, rel=1e-9)
    assert h_score(x, y, shrinkage=1.0) == 0
    if n > d:
        assert h_score(x, y, shrinkage=0.0) == pytest.approx(h_score(x, y))


def rrr_by_definition(x, y, rank):
    """Generalized eigenvalues of (X X^T, M), centred, over the labels' total variance: theory's `explained`."""
    t = np.eye(int(y.max()) + 1)[y]
    x, t = x - x.mean(0), t - t.mean(0)
    m, c = x.T @ x / len(x), x.T @ t / len(x)
    return float(np.sort(eigh(c @ c.T, m, eigvals_only=True))[::-1][:rank].sum() / np.trace(t.T @ t / len(x)))


@pytest.mark.parametrize("rank", [1, 2, None])
def test_reduced_rank_r2_is_the_explained_share(rank):
    x, y = planted(200, 12, classes=4)
    assert reduced_rank_r2(x, y, rank=rank) == pytest.approx(rrr_by_definition(x, y, rank), rel=1e-8)


def test_reduced_rank_r2_full_rank_is_least_squares():
    x, y = planted(200, 12, classes=4)
    t, design = np.eye(4)[y], np.hstack([np.ones((200, 1)), x])
    fitted = design @ np.linalg.lstsq(design, t, rcond=None)[0]
    assert reduced_rank_r2(x, y) == pytest.approx(1 - np.sum((t - fitted) ** 2) / np.sum((t - t.mean(0)) ** 2))


def test_reduced_rank_r2_grows_with_rank_and_is_one_when_features_outnumber_texts():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 60)), np.arange(40) % 4
    values = [reduced_rank_r2(x, y, rank=k) for k in (1, 2, 3, 4)]
    assert np.all(np.diff(values) >= -1e-12)
    assert reduced_rank_r2(x, y) == pytest.approx(1)


def test_the_spectrum_is_its_definitions():
    """Features with a planted spectrum: singular values i^(-1/2), mean zero."""
    rng, n, d = np.random.default_rng(0), 400, 60
    left = np.linalg.qr(np.c_[np.ones(n), rng.normal(size=(n, d))])[0][:, 1:]  # orthonormal, each of mean zero
    right = np.linalg.qr(rng.normal(size=(d, d)))[0]
    variances = np.arange(1, d + 1) ** -1.5
    found = spectrum(left * np.sqrt(variances) @ right)
    shares = np.sqrt(variances) / np.sqrt(variances).sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.decay == pytest.approx(1.5)
    assert found.loudest == pytest.approx(1 / variances.sum())
    again = spectrum(7.0 * (left * np.sqrt(variances) @ right)[::-1])
    assert vars(again) == pytest.approx(vars(found))  # neither unit nor order matters


def test_the_ends_of_a_spectrum():
    one = spectrum(np.outer(np.arange(1.0, 9.0), np.ones(5)))
    assert (one.effective_rank, one.loudest) == (pytest.approx(1.0), pytest.approx(1.0))
    assert math.isnan(one.decay)
    flat = spectrum(np.r_[np.eye(30), -np.eye(30)])
    assert flat.effective_rank == pytest.approx(30)
    assert (flat.decay, flat.loudest) == (pytest.approx(0, abs=1e-9), pytest.approx(1 / 30))
    wide = np.random.default_rng(0).normal(size=(20, 300))
    assert spectrum(wide).effective_rank <= 20
    for features in (np.ones((5, 3)), np.zeros((5, 3))):
        with pytest.raises(NtpsError, match="every feature is constant"):
            spectrum(features)
    with pytest.raises(NtpsError, match="not finite at text 1"):
        spectrum(np.array([[0.0], [np.nan]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_are_told_from_faint_ones(dtype):
    """Forty columns of one value each, of any magnitude, and forty that vary by 1e-5 of their mean."""
    rng = np.random.default_rng(0)
    means = rng.choice([-1, 1], 40) * 10.0 ** rng.uniform(-8, 8, 40)
    constant, faint = np.tile(means, (300, 1)).astype(dtype), means * (1 + 1e-5 * rng.standard_normal((300, 40)))
    assert (column_scaling(constant)[1] == 0).all()
    mean, scale = column_scaling(faint.astype(dtype))
    assert ((faint - mean) * scale).std(0) == pytest.approx(1, rel=0.01)
    x, y = planted(300, 5)
    assert h_score(np.hstack([x, constant]).astype(dtype), y) == pytest.approx(h_score(x.astype(dtype), y), rel=1e-6)


@pytest.mark.parametrize(
    "measure",
    [h_score, reduced_rank_r2, knn_accuracy, lambda x, y: linear_probe(x, y, folds=3, cs=(0.1, 1.0)).accuracy],
)
def test_constant_columns_and_units_change_nothing(measure):
    x, y = planted(120, 10)
    value = measure(x, y)
    spiked = np.hstack([x, np.full((120, 2), 1e6) * (1 + 1e-17)])
    assert measure(spiked, y) == pytest.approx(value, abs=1e-6)
    assert measure(x * np.logspace(-5, 5, 10), y) == pytest.approx(value, abs=1e-6)
    assert measure(x * 1e-2 + 1, y) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("measure", [h_score, reduced_rank_r2])
def test_collinear_columns_change_nothing(measure):
    x, y = planted(120, 10)
    assert measure(np.hstack([x, x[:, :3], x[:, :1] - x[:, 1:2]]), y) == pytest.approx(measure(x, y), abs=1e-8)


@pytest.mark.parametrize("measure", [h_score, reduced_rank_r2, lambda x, y: h_score(x, y, shrinkage="ledoit-wolf")])
def test_all_constant_features_are_refused(measure):
    with pytest.raises(NtpsError, match="constant"):
        measure(np.full((20, 3), 0.1, dtype=np.float32), np.arange(20) % 2)


# ---- linear probe -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_linear_probe_agrees_with_scikit_learns_own_pipeline():
    x, y = planted(400, 12, classes=4)
    result = linear_probe(x, y, folds=3, random_state=3)
    right = []
    for number, (train, test) in enumerate(make_folds(y, 3, 3)):
        scaler = StandardScaler().fit(x[train])
        losses = []
        for c in CS:
            reference = LogisticRegression(C=c, tol=1e-6, max_iter=2000)
            inner = make_folds(y[train], 3, 3 + number)
            scaled = scaler.transform(x[train])
            losses.append(-cross_val_score(reference, scaled, y[train], cv=inner, scoring="neg_log_loss").mean())
        chosen = CS[int(np.argmin(losses))]
        assert result.c[number] == chosen
        model = LogisticRegression(C=chosen, tol=1e-6, max_iter=2000).fit(scaled, y[train])
        right.append(model.predict(scaler.transform(x[test])) == y[test])
    assert result.accuracy == pytest.approx(np.concatenate(right).mean(), abs=0.0051)
    assert result.above_majority == pytest.approx(result.accuracy - np.bincount(y).max() / 400)
    assert result.n == 400 and result.n_classes == 4 and result.folds == 3 and len(result.c) == 3
    assert result.standard_errors["accuracy"] == pytest.approx(np.std(result.per_fold["accuracy"], ddof=1) / 3**0.5)
    assert result.to_dict()["per_fold"]["accuracy"] == list(result.per_fold["accuracy"])


def test_class_scores_count_classes_that_are_only_true_or_only_predicted(recwarn):
    truth, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 1, 3])
    accuracy, balanced, f1 = class_scores(truth, predicted)
    assert accuracy == pytest.approx(5 / 7)
    assert balanced == pytest.approx((3 / 4 + 1 + 0) / 3)  # over the true classes
    assert f1 == pytest.approx((6 / 7 + 4 / 5 + 0 + 0) / 4)  # over all four
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of attributes that scikit-learn will simplify
def test_choose_c_is_that_of_scikit_learns_cross_validation():
    for seed, noise in enumerate((1.0, 8.0, 1e6)):
        x, y = planted(120, 8, noise=noise, seed=seed)
        x, _ = standardize(x, x)
        reference = LogisticRegressionCV(Cs=CS, cv=make_folds(y, 3, seed), scoring="neg_log_loss", tol=1e-6)
        assert choose_c(x, y, CS, seed) == pytest.approx(np.unique(reference.fit(x, y).C_).item())


@pytest.mark.parametrize(("n", "d"), [(60, 10), (30, 50)])
def test_ridge_chooses_by_explicit_leave_one_out(n, d):
    x, y = planted(n + 20, d)
    t = np.eye(3)[y]
    a, b = standardize(x[:n], x[n:])

    def fit_predict(train_x, train_t, test_x, alpha):
        # leave-one-out keeps the centring of all texts for x, and an unpenalised intercept for y
        design = np.hstack([np.ones((len(train_x), 1)), train_x])
        penalty = alpha * np.diag([0.0] + [1.0] * train_x.shape[1])
        return np.hstack([np.ones((len(test_x), 1)), test_x]) @ np.linalg.solve(
            design.T @ design + penalty, design.T @ train_t
        )

    loo = [
        sum(
            np.sum((t[i] - fit_predict(np.delete(a, i, 0), np.delete(t[:n], i, 0), a[i : i + 1], alpha)[0]) ** 2)
            for i in range(n)
        )
        for alpha in ALPHAS
    ]
    alpha, fitted = ridge(a, t[:n], b)
    assert alpha == ALPHAS[int(np.argmin(loo))]
    np.testing.assert_allclose(fitted, fit_predict(a, t[:n], b, alpha), rtol=1e-6, atol=1e-9)
    split = linear_probe(x, y, folds=[(np.arange(n), np.arange(n, n + 20))], cs=(1.0,))
    assert split.alpha == (alpha,)
    assert split.mse == pytest.approx(np.mean((t[n:] - fitted) ** 2))
    assert split.r2 == pytest.approx(1 - np.sum((t[n:] - fitted) ** 2) / np.sum((t[n:] - t[:n].mean(0)) ** 2))


def test_linear_probe_finds_what_is_there_and_nothing_in_noise():
    x, y = planted(300, 12)
    assert linear_probe(x, y, folds=3).accuracy > 0.9
    rng = np.random.default_rng(0)
    noise = linear_probe(rng.standard_normal((300, 40)), y, folds=3)
    assert abs(noise.accuracy - 1 / 3) < 0.1 and noise.r2 < 0.05


def test_linear_probe_with_a_class_of_one_text_and_a_class_missing_from_training():
    x, y = planted(60, 5)
    y = y.copy()
    y[0] = 7  # one text only: its fold's training never sees the class, so it counts as wrong
    result = linear_probe(x, y)
    assert result.n_classes == len(np.unique(y)) and result.balanced_accuracy < 0.76
    train, test = np.flatnonzero(y == 0), np.flatnonzero(y != 0)
    alone = linear_probe(x, y, folds=[(train, test)])
    assert alone.accuracy == 0 and math.isnan(alone.standard_errors["r2"])
    assert alone.to_dict()["standard_errors"]["r2"] is None
    same = linear_probe(x, y, folds=[(train[:5], train[5:])])  # labels that do not vary have no R^2
    assert same.accuracy == 1 and math.isnan(same.r2) and same.mse == 0


def test_probes_with_a_single_training_text_do_not_warn(recwarn):
    x, y = planted(20, 5, classes=2)
    result = linear_probe(x, y, folds=[(np.array([0]), np.arange(1, 20))])
    assert result.accuracy == np.mean(y[1:] == y[0]) and not recwarn.list


def test_probe_result_takes_keywords_only_and_is_frozen():
    x, y = planted(40, 4)
    result = linear_probe(x, y, cs=(1.0,))
    with pytest.raises(TypeError):
        ProbeResult(*vars(result).values())
    with pytest.raises(AttributeError):
        result.accuracy = 1.0
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


def test_linear_probe_more_features_than_texts_and_half_precision():
    x, y = planted(40, 100)
    a = linear_probe(x.astype(np.float16), y, folds=3)
    assert 0 <= a.accuracy <= 1 and a.r2 < 1
    assert linear_probe(x.astype(np.float16), y, folds=3) == a


def test_a_leak_through_the_folds_is_refused_and_texts_are_judged_once():
    _, y = planted(31, 4)
    pairs = make_folds(y, 4)
    assert sorted(np.concatenate([test for _, test in pairs])) == list(range(31))
    assert all(np.intersect1d(a, b).size == 0 for a, b in pairs)
    for c in range(3):
        sizes = [np.sum(y[test] == c) for _, test in pairs]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(NtpsError, match="overlap"):
        make_folds(y, [(np.arange(20), np.arange(19, 31))])


def test_folds_are_those_of_the_score_however_they_are_given():
    _, y = planted(30, 4)
    expected = make_folds(y, 4, 7)
    fold_of = assign_folds(y, 4, seed=7)
    for given in (fold_of, fold_of.tolist(), expected, iter(expected)):
        for pair, reference in zip(make_folds(y, given), expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(pair, reference, strict=True))
    assert len(make_folds(y, "auto")) == 5 and len(make_folds(np.arange(6) // 3, "auto")) == 3
    assert len(make_folds(y, [(np.delete(np.arange(30), i), np.array([i])) for i in range(30)])) == 30


def test_knn_accuracy_is_scikit_learns():
    x, y = planted(150, 8)
    expected = cross_val_predict(make_pipeline(StandardScaler(), KNeighborsClassifier(5)), x, y, cv=make_folds(y, 5))
    assert knn_accuracy(x, y) == pytest.approx(np.mean(expected == y))
    few = knn_accuracy(x[:6], np.arange(6) % 2, folds=[0, 1, 0, 1, 1, 0])
    assert few == pytest.approx(2 / 6)  # all three training texts are neighbours: their majority is right once a fold


def test_one_thread_holds_for_every_library_and_ends():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads():
        return {pool["num_threads"] for pool in threadpool_info()}

    with threadpool_limits(limits=2):
        for _ in range(2):
            assert threads() == {2}
            with one_thread():
                assert threads() == {1}
        assert threads() == {2}


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "labels", "match"),
    [
        (np.zeros(5), np.zeros(5, int), "shape"),
        (np.zeros((0, 3)), np.zeros(0, int), "non-empty"),
        (np.zeros((5, 3)), np.zeros(4, int), "one class index per text"),
        (np.zeros((5, 3)), np.zeros(5), "integers"),
        (np.zeros((5, 3)), np.zeros(5, int), "at least two classes"),
        (np.array([[1.0], [np.nan]]), np.array([0, 1]), "text 1, feature 0"),
        (np.zeros((2, 3), complex), np.array([0, 1]), "real"),
    ],
)
def test_bad_features_are_refused_in_one_sentence(features, labels, match):
    with pytest.raises(NtpsError, match=match):
        check_features(features, labels)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("folds is 1;.* 10", lambda x, y: linear_probe(x, y, folds=1)),
        ("folds is 11;.* 10", lambda x, y: linear_probe(x, y, folds=11)),
        ("folds is True", lambda x, y: linear_probe(x, y, folds=True)),
        ("single fold", lambda x, y: linear_probe(x, y, folds=np.zeros(20, int))),
        (r"0\.\.19", lambda x, y: linear_probe(x, y, folds=[(np.arange(5), np.array([99]))])),
        ("'auto'.*pairs", lambda x, y: linear_probe(x, y, folds=["ab"])),
        ("'auto'.*pairs", lambda x, y: linear_probe(x, y, folds="five")),
        ("'auto'.*pairs", lambda x, y: linear_probe(x, y, folds=2.5)),
        ("'auto'.*pairs", lambda x, y: linear_probe(x, y, folds=None)),
        ("'auto'.*pairs", lambda x, y: linear_probe(x, y, folds=[])),
        ("at least two texts", lambda x, y: linear_probe(x, np.arange(20))),
        (r"cs is \(\)", lambda x, y: linear_probe(x, y, cs=())),
        ("cs is .*-1", lambda x, y: linear_probe(x, y, cs=(-1.0,))),
        ("shrinkage is 'oas'.*ledoit-wolf", lambda x, y: h_score(x, y, shrinkage="oas")),
        ("shrinkage is 2.0", lambda x, y: h_score(x, y, shrinkage=2.0)),
        ("rank is 0", lambda x, y: reduced_rank_r2(x, y, rank=0)),
    ],
)
def test_bad_options_are_refused(match, call):
    x, y = np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) % 2
    with pytest.raises(NtpsError, match=match):
        call(x, y)


def test_training_probe_reads_the_texts_it_was_fitted_on():
    """Least squares with an intercept; when features outnumber texts, any labels are learned."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)) * [1, 10, 100, 1, 1], rng.integers(0, 3, 80)
    design = np.column_stack([x, np.ones(80)])
    one_hot = np.eye(3)[y]
    residuals = one_hot - design @ np.linalg.lstsq(design, one_hot, rcond=None)[0]
    measured = training_probe(x, y)
    assert measured["training_error"] == pytest.approx((residuals**2).mean())
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1))
    assert measured["training_accuracy"] == pytest.approx(pipeline.fit(x, y).score(x, y), abs=0.03)
    noise = training_probe(rng.normal(size=(40, 60)), np.arange(40) % 2)
    assert noise == {"training_accuracy": 1.0, "training_error": pytest.approx(0, abs=1e-12)}
    assert linear_probe(rng.normal(size=(40, 60)), np.arange(40) % 2).accuracy < 0.8
    with pytest.raises(NtpsError, match="at least two classes"):
        training_probe(x, np.zeros(80, dtype=int))
