"""Reference implementations: the formulas of the paper in plain loops, in float64, sharing nothing with the library.

A text is an array (L, d) of the hidden states of its tokens at one layer; targets are an array (n, c).
"""

import numpy as np


def past_states(h, prefix):
    """What stands for the past of each token: s_t, s_t / t, or h_t."""
    rows, total = [], np.zeros(h.shape[1])
    for t in range(len(h)):
        total = total + h[t].astype(np.float64)
        rows.append({"sum": total, "mean": total / (t + 1), "last": h[t].astype(np.float64)}[prefix])
    return rows


def pooled(texts, pooling="mean"):
    """Mean over the tokens of each text, or its last one, (n, d)."""
    return np.array([past_states(h, pooling if pooling == "last" else "mean")[-1] for h in texts])


def moments(texts, targets, prefix="sum"):
    """Means over texts of every product, one text and one position at a time."""
    n, d, c = len(texts), texts[0].shape[1], targets.shape[1]
    out = {"M": np.zeros((d, d)), "X": np.zeros((d, c)), "C0": np.zeros((d, d)), "C1": np.zeros((d, d))}
    out |= {"mean_x": np.zeros(d), "mean_y": np.zeros(c), "yy": np.zeros((c, c))}
    out |= {"last_gram": np.zeros((d, d)), "token_gram": np.zeros((d, d))}
    for h, y in zip(texts, targets, strict=True):
        h = h.astype(np.float64)
        last = past_states(h, "sum")[-1]
        x = last / len(h)
        out["M"] += np.outer(x, x) / n
        out["X"] += np.outer(x, y) / n
        out["mean_x"] += x / n
        out["mean_y"] += y / n
        out["yy"] += np.outer(y, y) / n
        out["last_gram"] += np.outer(last, last) / n
        past = past_states(h, prefix)
        for t in range(len(h)):
            out["token_gram"] += np.outer(h[t], h[t]) / n
            if t + 1 < len(h):
                out["C0"] += np.outer(past[t], past[t]) / n
                out["C1"] += np.outer(past[t], h[t + 1]) / n
    out["n"], out["n_pairs"] = n, sum(len(h) - 1 for h in texts)
    return out


def loss(features, targets):
    """Mean squared error of the best linear readout of the features, by least squares on the data."""
    coefficients = np.linalg.lstsq(features, targets, rcond=None)[0]
    return float(((targets - features @ coefficients) ** 2).sum() / len(targets))


def pairs(texts, prefix="sum"):
    """All (past, next) pairs as two arrays, and the number of texts: what V's problem is a regression on."""
    past, following = [], []
    for h in texts:
        rows = past_states(h, prefix)
        past.extend(rows[:-1])
        following.extend(h[1:].astype(np.float64))
    return np.array(past), np.array(following)


def score(U, V):
    """NTPS of two encoders by a pseudo-inverse."""
    P = V @ np.linalg.pinv(V)
    return float(((P @ U) ** 2).sum() / (U**2).sum())


def held_out(texts_x, targets, fold_of, V, ks, ridges):
    """Held-out R^2 for each k and for all directions: a ridge readout with intercept refitted for each fold.

    The penalty of a fold, for each k, is the one with the least squared error over the texts of the other folds.
    """
    d = texts_x.shape[1]
    folds = sorted(set(fold_of))
    values = []
    whole = np.linalg.qr(V, mode="complete")[0]
    for k in [*ks, d]:
        errors = np.zeros((len(folds), len(ridges)))
        baseline = np.zeros(len(folds))
        for f in folds:
            train, test = fold_of != f, fold_of == f
            mean_x, mean_y = texts_x[train].mean(0), targets[train].mean(0)
            z = (texts_x[train] - mean_x) @ whole[:, :k]
            scale = ((texts_x[train] - mean_x) ** 2).sum() / train.sum() / d
            for r, ridge in enumerate(ridges):
                gram = z.T @ z / train.sum() + ridge * scale * np.eye(k)
                readout = np.linalg.solve(gram, z.T @ (targets[train] - mean_y) / train.sum())
                fitted = mean_y + (texts_x[test] - mean_x) @ whole[:, :k] @ readout
                errors[f, r] = ((targets[test] - fitted) ** 2).sum()
            baseline[f] = ((targets[test] - mean_y) ** 2).sum()
        picked = 0.0
        for f in folds:
            others = [g for g in folds if g != f]
            picked += errors[f, errors[others].sum(0).argmin()]
        values.append(1 - picked / baseline.sum())
    return values[:-1], values[-1]


def released_procedure(M, X, C0, C1):
    """The released code's 19 scores: float32, absolute tolerance, ascending eigenvectors, a pseudo-inverse each."""

    def directions(gram, cross):
        values, vectors = np.linalg.eigh(gram.astype(np.float32))
        kept = np.flatnonzero(values > np.float32(1e-8))
        whitener = np.stack([vectors[:, i] / np.sqrt(values[i]) for i in kept], axis=1)
        target = (cross @ cross.T).astype(np.float32)
        return whitener @ np.linalg.eigh(whitener.T @ target @ whitener)[1]

    U, V = directions(M, X), directions(C0, C1)
    scores = []
    for step in range(1, 20):
        count = max(1, len(M) * step // 20)
        u, v = U[:, :count], V[:, :count]
        inside = v @ np.linalg.pinv(v) @ u
        scores.append(float((inside**2).sum() / (u**2).sum()))
    return scores
