"""Permutation p-values: counted by hand, ties, and the same at any scale."""

import math

import numpy as np
import pytest

from ntps.scoring.pvalues import permutation_p

NULL = np.array([-3.0, -1.0, 0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("observed", "options", "hits"),
    [(2.0, {}, 2), (-2.0, {}, 5), (2.0, {"two_sided": True}, 3), (-2.0, {"two_sided": True}, 3), (4.0, {}, 0)],
)
def test_hits_are_counted(observed, options, hits):
    assert permutation_p(observed, NULL, **options) == (1 + hits) / 7
    assert permutation_p(observed, NULL, exact=True, **options) == hits / 6


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_ties_within_rounding_are_hits_at_any_scale(scale):
    null = scale * np.array([0.1 + 0.2, 0.1, 0.2])
    assert permutation_p(scale * 0.3000000000000003, null, exact=True) == pytest.approx(1 / 3)
    assert permutation_p(scale * 0.3001, null, exact=True) == 0


def test_rounding_errors_about_zero_are_ties():
    assert permutation_p(0.0, np.array([-1e-17, -1.0, 1.0]), exact=True) == pytest.approx(2 / 3)


def test_undefined_stays_undefined():
    assert math.isnan(permutation_p(math.nan, NULL))
