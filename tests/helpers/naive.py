"""Reference implementations: the formulas of the paper in plain loops, in float64, sharing nothing with the library.

A text is an array (L, d) of the hidden states of its tokens at one layer; targets are an array (n, c).
"""

import numpy as np
import scipy.linalg


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


def held_out(states, targets, fold_of, V, ks, ridges, *, part=None):
    """Squared errors of ridge readouts refitted for each fold, penalty and k: (k errors..., all directions), baseline.

    States are standardised on the training texts of each fold; a channel that is constant there becomes 0. The first k
    columns of V are followed in standardised coordinates. The penalty of a fold, for each k, is the one with the least
    squared error on the texts of the other folds.
    """
    x, n, d = np.asarray(states, dtype=np.float64), len(states), states.shape[1]
    part = np.ones(n, dtype=bool) if part is None else part
    errors = np.zeros((len(ks) + 1, len(ridges), n))
    baseline = np.zeros(n)
    for f in sorted(set(fold_of)):
        train, test = np.flatnonzero((fold_of != f) & part), np.flatnonzero(fold_of == f)
        varies = [c for c in range(d) if len(set(x[train, c])) > 1]
        mean, mean_y = x[train].mean(0), targets[train].mean(0)
        z, inverse = np.zeros((n, d)), np.zeros(d)
        for c in varies:
            deviation = np.sqrt(((x[train, c] - mean[c]) ** 2).mean())
            z[:, c], inverse[c] = (x[:, c] - mean[c]) / deviation, deviation
        baseline[test] = ((targets[test] - mean_y) ** 2).sum(1)
        for i, k in enumerate([*ks, d]):
            basis = np.eye(d) if i == len(ks) else np.linalg.qr(inverse[:, None] * V[:, :k])[0]
            a, b = z[train] @ basis, z[test] @ basis
            for j, ridge in enumerate(ridges):
                penalty = ridge * len(train) * len(varies) / d
                tall = np.vstack([a, np.sqrt(penalty) * np.eye(a.shape[1])])
                wide = np.vstack([targets[train] - mean_y, np.zeros((a.shape[1], targets.shape[1]))])
                readout = np.linalg.lstsq(tall, wide, rcond=None)[0]
                errors[i, j, test] = ((targets[test] - mean_y - b @ readout) ** 2).sum(1)
    picked = np.zeros((len(ks) + 1, n))
    for f in set(fold_of):
        best = errors[:, :, fold_of != f].sum(2).argmin(1)
        for i, j in enumerate(best):
            picked[i, fold_of == f] = errors[i, j, fold_of == f]
    return picked, baseline


def released_directions(F, B):
    """The released code's directions of (F F^T, B), its statements in their order: float32, product first."""
    F, B = (np.asarray(matrix).astype(np.float32) for matrix in (F, B))
    A = F @ F.T
    S, Q = scipy.linalg.eigh(B)
    r = np.where(S > 1e-8)[0]
    W = Q[:, r] @ np.linalg.inv(np.sqrt(np.diag(S[r])))
    return W @ scipy.linalg.eigh(W.T @ A @ W)[1]


def released_procedure(M, X, C0, C1):
    """The released code's 19 scores."""
    U, V = released_directions(X, M), released_directions(C1, C0)
    scores = []
    for k in np.arange(0.05, 1, 0.05):
        u, v = U[:, : int(k * U.shape[1])], V[:, : int(k * V.shape[1])]
        P = v @ np.linalg.pinv(v)
        with np.errstate(invalid="ignore"):
            scores.append(float(np.linalg.norm(P @ u, "fro") ** 2 / np.linalg.norm(u, "fro") ** 2))
    return scores
