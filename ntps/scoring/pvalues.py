"""The permutation p-value of scores, rank correlations and selections."""

import numpy as np

TIE = 1e-9  # permuted values this close to the observed one, relative to the largest of them, count as equal to it


def permutation_p(observed: float, null: np.ndarray, *, two_sided: bool = False, exact: bool = False) -> float:
    """Return the share of permuted values at least as large as the observed one.

    Equal arrangements give values that differ by rounding; within `TIE` they count as ties, and ties as hits. With
    random permutations the observed arrangement is counted too, (1 + hits) / (1 + B): the p-value is never zero, and
    the test keeps its level (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010).

    Args:
        observed: The value of the data as they are.
        null: Values (B,) under permutation, B >= 1, finite.
        two_sided: Whether to compare absolute values.
        exact: Whether `null` holds every permutation, the observed one included; then the p-value is hits / B.

    Returns:
        The p-value, in (0, 1]; NaN if `observed` is.
    """
    if np.isnan(observed):
        return float("nan")
    values = np.abs(null) if two_sided else np.asarray(null)
    value = abs(observed) if two_sided else observed
    tolerance = TIE * max(abs(observed), float(np.abs(null).max()))
    hits = int(np.count_nonzero(values >= value - tolerance))
    return hits / len(null) if exact else (1 + hits) / (1 + len(null))
