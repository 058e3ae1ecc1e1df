"""What the paper's own numbers say about its evidence: each finding with the computation that shows it.

The findings are about the released code (github.com/Yu-AngCheng/NTPS, commit 0f877f7) and the published figures
(`ntps.paper.published`). What holds comes first. Nothing here needs a network, a model or a data set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._files import Record, jsonable
from ntps._text import Column, text_table, wrap
from ntps.paper.published import TARGETS, datasets, results
from ntps.scoring.probes import one_thread
from ntps.study import to_grid
from ntps.study.correlations import centered_ranks, unit

if TYPE_CHECKING:
    import pandas as pd

    from ntps.core import Solved

LARGEST = 80_000  # texts of a set, beyond the largest of the twelve
DIGITS = 5e-11  # half of the last digit of the published figures
NOISE = 1e-7  # relative, of moments summed in float32 in another order
BROKEN = ("medical", "intent")
FRACTIONS, LAYERS = 19, 17  # options that the released code computes for its smallest model


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """One finding, with its evidence.

    Attributes:
        key: Short name.
        title: The finding in one sentence.
        columns: Columns of the table.
        rows: Rows of the table, as mappings.
        text: What the table shows, and what it means, a sentence or two each.
        numbers: Further numbers by name.
    """

    left_out = ("columns",)

    key: str
    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    text: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return title, table and sentences in at most 80 columns."""
        table = [f"  {line}" for line in text_table(self.columns, self.rows)] if self.rows else []
        return "\n".join([*wrap(self.title), *([""] if table else []), *table, "", *wrap(" ".join(self.text))])


@dataclass(frozen=True, kw_only=True)
class Audit(Record):
    """All findings, what holds first."""

    findings: tuple[Finding, ...]

    def __getitem__(self, key: str) -> Finding:
        return next(finding for finding in self.findings if finding.key == key)

    def to_text(self) -> str:
        """Return all findings, numbered, in at most 80 columns."""
        numbered = (
            replace(finding, title=f"{number}. {finding.title}").to_text()
            for number, finding in enumerate(self.findings, 1)
        )
        return "\n\n\n".join(numbered)

    __str__ = to_text

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return jsonable(
            {
                "schema_version": 1,
                "kind": "ntps-paper-audit",
                "findings": self.findings,
            }
        )


def audit(*, random_state: int = 0) -> Audit:
    """Audit the paper: its mathematics on random problems, its evidence on its published figures.

    Args:
        random_state: Seed of the random problems, the noise and the permutations.
    """
    frame = results()
    rng = np.random.default_rng(random_state)
    with one_thread():  # the problems are too small for a second one
        findings = (
            mathematics(rng),
            denominators(frame),
            twins(frame, rng),
            same_rows(frame),
            rounding(rng),
            choice(frame, rng),
            broken_sets(frame),
            losses(frame),
        )
    return Audit(findings=findings)


def mathematics(rng: np.random.Generator, *, problems: int = 50) -> Finding:
    """Compare the closed forms with reduced-rank regressions by least squares, and the bounds with the exact loss."""
    from ntps.scoring import read_layer

    encoders, losses, outside = [], [], 0
    for _ in range(problems):
        texts, labels = _problem(rng, n=60, d=6, classes=3)
        solved = _solve(texts, labels)
        x, y = np.array([h.mean(0) for h in texts]), np.eye(3)[labels]
        past = np.concatenate([h.cumsum(0)[:-1] for h in texts])
        following = np.concatenate([h[1:] for h in texts])
        k = 3
        for inputs, targets, encoder in ((x, y, solved.U), (past, following, solved.V)):
            best = _reduced_rank(inputs, targets, k) / len(texts)
            encoders.append(abs(float(encoder.eigenvalues[:k].sum()) / best - 1))
        through_v = x @ solved.V.vectors[:, :k].numpy()
        refitted = _least_squares(through_v, y) / len(texts)
        excess = float(solved.U.eigenvalues[:k].sum()) - refitted
        losses.append(abs(solved.excess_at(k, k) - excess) / excess)
        for low, high in read_layer(solved, k_u=k, k_v=k).bounds.values():
            outside += not low - 1e-12 <= excess <= high + 1e-12
    return Finding(
        key="mathematics",
        title="What holds: the derivation, the closed forms and the bounds.",
        text=(
            f"On {problems} random problems both closed-form encoders reach the loss of a reduced-rank regression by "
            f"least squares (largest relative difference {max(encoders):.0e}), the excess loss of V is that of a "
            f"readout refitted on V ({max(losses):.0e}), and it lies outside the bounds of Theorem 2 in {outside} of "
            f"{2 * problems} cases.",
        ),
        numbers={
            "problems": problems,
            "encoder_difference": max(encoders),
            "excess_difference": max(losses),
            "outside_bounds": outside,
        },
    )


def denominators(frame: "pd.DataFrame") -> Finding:
    """Find the smallest number of texts of which the published accuracies of all models are whole fractions."""
    sizes = datasets().set_index("dataset")
    rows = []
    for name in frame["dataset"].unique():
        part = frame[frame["dataset"] == name]
        known = sizes.loc[name]
        rows.append(
            {
                "dataset": name,
                "n_accuracy": smallest_denominator(part["accuracy"].to_numpy()),
                "n_gain": smallest_denominator(part[["linear_accuracy", "lora_accuracy"]].to_numpy().ravel()),
                "n_train": None if math.isnan(known["n_train"]) else int(known["n_train"]),
                "n_test": None if math.isnan(known["n_test"]) else int(known["n_test"]),
            }
        )
    known_rows = [row for row in rows if row["n_train"] is not None]
    differing = [row for row in known_rows if row["n_train"] != row["n_test"]]
    agree = sum(row["n_accuracy"] == row["n_train"] for row in known_rows)
    tested = sum(row["n_accuracy"] == row["n_test"] for row in differing)
    gains = sum(row["n_gain"] == row["n_test"] for row in known_rows)

    def count(name: str) -> Column:
        heading = {"n_accuracy": "accuracies", "n_gain": "LoRA", "n_train": "train", "n_test": "test"}[name]
        return Column(heading, lambda row: None if row[name] is None else f"{row[name]:,}")

    return Finding(
        key="denominators",
        title="The probe accuracies of Figure 2 are training accuracies.",
        columns=(
            Column("data set", lambda row: row["dataset"], words=True),
            *(count(name) for name in ("n_accuracy", "n_gain", "n_train", "n_test")),
        ),
        rows=tuple(rows),
        text=(
            "An accuracy over n texts is a whole number of n-ths. Left: the smallest n for which that is so of all 8 "
            "published probe accuracies (Figure 2), and of all 16 accuracies of the linear head and of LoRA (Figure "
            "3). Right: the numbers of texts by the data sets' cards, where they are known.",
            f"The first is the size of the training set in {agree} of {len(known_rows)} sets, and that of the test "
            f"set in {tested} of the {len(differing)} whose two sizes differ. The second is that of the test set in "
            f"{gains} of {len(known_rows)}. So Figure 2 judges a probe on the texts it was fitted on, and Figure 3's "
            "baseline is another probe, on other texts (linear_sklearn.py fits and predicts on the same rows).",
        ),
        numbers={"train": agree, "test": tested, "known": len(known_rows), "differing": len(differing), "gain": gains},
    )


def smallest_denominator(shares: np.ndarray, largest: int = LARGEST) -> int | None:
    """Return the smallest n up to `largest` for which every share times n is whole, within the published digits.

    Args:
        shares: (m,) in [0, 1], with ten digits after the point.
        largest: Largest n to try.

    Returns:
        That n; `None` if there is none. A wrong n passes with a probability of about (4 n 5e-11)^m.
    """
    fitting = np.arange(2, largest + 1)
    for share in shares:
        products = share * fitting
        fitting = fitting[np.abs(products - np.round(products)) <= 2 * DIGITS * fitting + 1e-9]
    return int(fitting[0]) if len(fitting) else None


def twins(frame: "pd.DataFrame", rng: np.random.Generator) -> Finding:
    """Show that the medical set is judged below a coin by every model, as twins of opposite labels are."""
    part = frame[frame["dataset"] == "medical"]
    sizes: Any = datasets().set_index("dataset").loc["medical"]
    n_train, n_test = int(sizes["n_train"]), int(sizes["n_test"])
    names = {"linear_accuracy": "linear head", "lora_accuracy": "LoRA"}
    rows = []
    for _, row in part.iterrows():
        z = [(row[name] - 0.5) / math.sqrt(0.25 / n_test) for name in names]
        rows.append({"model": row["short"], **{name: row[name] for name in names}, "z": max(z)})
    # Who remembers the training texts answers a twin with its sibling's label, and guesses the rest.
    halves = []
    for _ in range(20):
        place = rng.permutation(n_train + n_test)
        twin = place ^ 1
        in_train = np.zeros(n_train + n_test + 2, dtype=bool)
        in_train[place[:n_train]] = True
        halves.append(0.5 * (1 - in_train[twin[n_train:]].mean()))
    memory = float(np.mean(halves))
    highest = max(max(row[name] for name in names) for row in rows)
    return Finding(
        key="medical",
        title="The medical set is broken: every model is below a coin on it.",
        columns=(
            Column("model", lambda row: row["model"], words=True),
            Column("linear head", lambda row: row["linear_accuracy"]),
            Column("LoRA", lambda row: row["lora_accuracy"]),
            Column("z of the better one", lambda row: row["z"], digits=1),
        ),
        rows=tuple(rows),
        text=(
            f"Two balanced classes, {n_test} test texts: a coin reaches 0.5, and the best of 16 published test "
            f"accuracies is {highest:.2f}. In the loader (utils.py:83-86) a `return` stands inside the loop over rows, "
            "so that all but 4 of 3,048 texts are the first question alone; and each first question stands in two "
            "rows, one of each label.",
            f"A reader who remembers the training texts and answers a twin with its sibling's label would reach "
            f"{memory:.2f} on a split of 70 to 30. NTPS is not to blame for these figures, nor can they speak for it.",
        ),
        numbers={"highest": highest, "memory": memory},
    )


def same_rows(frame: "pd.DataFrame") -> Finding:
    """Show that the intent set is tested on as many texts as it is trained on."""
    part = frame[frame["dataset"] == "intent"]
    train = smallest_denominator(part["accuracy"].to_numpy())
    test = smallest_denominator(part[["linear_accuracy", "lora_accuracy"]].to_numpy().ravel())
    lowest = float(part["linear_accuracy"].min())
    return Finding(
        key="intent",
        title="The intent set is tested on as many texts as it is trained on.",
        text=(
            f"Its training accuracies are whole {train:,}ths, and so are its test accuracies ({test:,}); the lowest of "
            f"8 linear heads on 21 classes is {lowest:.3f}. The set's files `train` and `test` look identical: where "
            "they are, its test accuracy is a training accuracy.",
        ),
        numbers={"train": train, "test": test, "lowest": lowest},
    )


def rounding(rng: np.random.Generator, *, draws: int = 10) -> Finding:
    """Show how far rounding moves the released score, beside the score by its formula."""
    from ntps.core import official_curve

    texts, labels = _problem(rng, n=400, d=64, classes=3)
    solved = _solve(texts, labels)
    exact = np.array(official_curve(solved.pooled, solved.next_token)["ntps"])
    by_formula = solved.ntps_at(solved.U.rank, 8)
    moved, moved_formula = [], []
    for _ in range(draws):
        pooled = replace(solved.pooled, M=_noisy(solved.pooled.M, rng), X=_noisy(solved.pooled.X, rng))
        moments = replace(solved.next_token, C0=_noisy(solved.next_token.C0, rng), C1=_noisy(solved.next_token.C1, rng))
        moved.append(np.abs(np.array(official_curve(pooled, moments)["ntps"]) - exact))
        again = _solve_moments(solved, pooled, moments)
        moved_formula.append(abs(again - by_formula))
    mean = np.nanmean(moved, axis=0)
    shown = [0, 4, 9, 14, 18]
    rows = tuple(
        {"fraction": 0.05 * (i + 1), "ntps": exact[i], "mean": mean[i], "largest": np.nanmax(moved, axis=0)[i]}
        for i in shown
    )
    return Finding(
        key="rounding",
        title="Rounding decides part of the released score.",
        columns=(
            Column("fraction", lambda row: f"{row['fraction']:.0%}"),
            Column("released score", lambda row: row["ntps"]),
            Column("moved by, mean", lambda row: row["mean"], digits=4),
            Column("largest", lambda row: row["largest"], digits=4),
        ),
        rows=rows,
        text=(
            f"A made-up layer of 64 directions, 3 classes, 400 texts; relative noise of {NOISE:.0e} in the moments, as "
            f"much as summing float32 in another order makes, {draws} times. K_sweep.py takes the eigenvectors of the "
            "smallest eigenvalues first, and X X^T has at most 3 that are not zero: the others come from a null space, "
            f"where rounding decides. The score by the paper's formula ({by_formula:.3f}) moves by "
            f"{max(moved_formula):.0e}.",
        ),
        numbers={"largest": float(np.nanmax(moved)), "formula": max(moved_formula), "by_formula": by_formula},
    )


def choice(frame: "pd.DataFrame", rng: np.random.Generator, *, draws: int = 1000) -> Finding:
    """Show how well the best of many unrelated options correlates on 12 data sets, beside the published figures."""
    n = frame["dataset"].nunique()
    target = unit(centered_ranks(np.arange(n, dtype=float)))
    rows = []
    for options, words in ((1, "one option"), (FRACTIONS, "fractions"), (FRACTIONS * LAYERS, "fractions and layers")):
        ranks = rng.permuted(np.broadcast_to(target, (draws, options, n)).copy(), axis=2)
        best = np.abs(ranks @ target).max(1)
        rows.append({"options": options, "words": words, "median": np.median(best), "high": np.quantile(best, 0.95)})
    absolute = {target: np.abs(_by_model(frame, target)) for target in TARGETS}
    spread = {target: (float(each.min()), float(each.max())) for target, each in absolute.items()}
    published = ", ".join(f"{low:.2f} to {high:.2f} ({target})" for target, (low, high) in spread.items())
    return Finding(
        key="choice",
        title="Layer and fraction were chosen on the 12 points they are judged on.",
        columns=(
            Column("best of", lambda row: str(row["options"])),
            Column("", lambda row: row["words"], words=True),
            Column("median |rho|", lambda row: row["median"], digits=2),
            Column("95 % point", lambda row: row["high"], digits=2),
        ),
        rows=tuple(rows),
        text=(
            f"What the best of so many unrelated scores of pure noise reaches on {n} sets. A model of {LAYERS - 1} "
            f"blocks has {FRACTIONS} fractions in {LAYERS} layers; real options are related, so the truth lies "
            f"between the lines. Published, each chosen so: {published}.",
            "The null that repeats the choice needs the scores at all fractions and layers, which were not published. "
            "For models at hand, `ntps study --convention official` computes it (`ntps_official:same_tasks`), and what "
            "is left when the choice is made on other sets (`ntps_official:held_out_task`).",
        ),
        numbers={"spearman": spread},
    )


def broken_sets(frame: "pd.DataFrame") -> Finding:
    """Compute the published correlations with and without the two broken sets."""
    views = {
        "all": (),
        "without medical": ("medical",),
        "without intent": ("intent",),
        "without both": BROKEN,
    }
    rows = []
    for target, words in (("accuracy", "probe accuracy"), ("error", "probe error"), ("gain", "gain of LoRA")):
        row: dict[str, Any] = {"target": target, "words": words}
        for view, left_out in views.items():
            part = frame[~frame["dataset"].isin(left_out)]
            each = _by_model(part, target)
            row[view] = [float(each.mean()), float(each.min()), float(each.max())]
        rows.append(row)

    def view_column(view: str) -> Column:
        def text(row: dict[str, Any]) -> str:
            value, low, high = row[view]
            return f"{value:+z.2f} [{low:+z.2f}, {high:+z.2f}]"

        return Column(view, text)

    return Finding(
        key="correlations",
        title="Without the two broken sets the correlations change little.",
        columns=(
            Column("published NTPS with", lambda row: row["words"], words=True),
            view_column("all"),
            view_column("without both"),
        ),
        rows=tuple(rows),
        text=(
            "Rank correlation, mean over 8 models [least, largest]. Layer and fraction stay as the paper chose them "
            "on all twelve sets. The change favours neither side.",
        ),
    )


def _by_model(frame: "pd.DataFrame", target: str) -> np.ndarray:
    """Return the rank correlation of NTPS with a target, over data sets, of each model."""
    x, y = (unit(centered_ranks(to_grid(frame, name))) for name in (f"ntps_{target}", target))
    return (x * y).sum(1)


def losses(frame: "pd.DataFrame") -> Finding:
    """Count the cells in which LoRA is below the linear head it is compared with."""
    sizes = frame[frame["gain"] < 0].groupby("dataset").size().sort_values(ascending=False)
    below = {str(name): int(count) for name, count in sizes.items()}
    total, cells = sum(below.values()), len(frame)
    listed = ", ".join(f"{name} {count}" for name, count in below.items())
    return Finding(
        key="losses",
        title=f"LoRA is below the linear head in {total} of {cells} published cells.",
        text=(
            f"Of 8 models each: {listed}. The last step is kept whatever it is worth (lora_finetuning.py), so a "
            "negative gain says as much about the recipe as about the model.",
        ),
        numbers={"below": below, "total": total, "cells": cells},
    )


def _problem(rng: np.random.Generator, *, n: int, d: int, classes: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return texts (each (L, d)) of a class-dependent autoregressive process, and their classes."""
    labels = rng.permutation(np.arange(n) % classes)
    means, spread = rng.normal(size=(classes, d)), np.exp(rng.normal(size=d))
    transition = rng.normal(size=(d, d)) / math.sqrt(d)
    texts = []
    for label in labels:
        state, rows = rng.normal(size=d), []
        for _ in range(rng.integers(3, 9)):
            state = 0.7 * transition @ state + 0.4 * means[label] + 0.6 * rng.normal(size=d)
            rows.append(state * spread)
        texts.append(np.array(rows))
    return texts, labels


def _solve(texts: Sequence[np.ndarray], labels: np.ndarray) -> "Solved":
    import torch

    from ntps.core import NextTokenMoments, solve_layer

    moments = NextTokenMoments(layers=[0], width=texts[0].shape[1], dtype=torch.float64)
    longest = max(map(len, texts))
    hidden = np.zeros((len(texts), longest, texts[0].shape[1]))
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, h in enumerate(texts):
        hidden[row, : len(h)], mask[row, : len(h)] = h, 1
    states = moments.update([torch.from_numpy(hidden)], torch.from_numpy(mask))[0]
    return solve_layer(states, torch.from_numpy(labels), moments.layer(0))


def _solve_moments(solved: "Solved", pooled: Any, next_token: Any) -> float:
    """Return the score by its formula from other moments, at the same ranks."""
    from ntps.core import autoregressive_encoder, ntps_table, perception_encoder

    U = perception_encoder(pooled.M, pooled.X)
    V = autoregressive_encoder(next_token.C0, next_token.C1)
    return float(ntps_table(U.vectors, V.vectors)[7, solved.U.rank - 1])


def _noisy(moment: Any, rng: np.random.Generator) -> Any:
    """Return a moment with relative noise, symmetric if it is."""
    import torch

    noise = torch.from_numpy(NOISE * rng.normal(size=tuple(moment.shape)))
    symmetric = moment.shape[0] == moment.shape[1] and torch.equal(moment, moment.T)
    return moment * (1 + ((noise + noise.T) / 2 if symmetric else noise))


def _least_squares(inputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the squared length of the least-squares fit."""
    fitted = inputs @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    return float(np.square(fitted).sum())


def _reduced_rank(inputs: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Return the squared length of the best fit of rank k: Izenman's reduced-rank regression, by an SVD of the fit."""
    fitted = inputs @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    return float(np.square(np.linalg.svd(fitted, compute_uv=False)[:k]).sum())
