"""What the tests of studies share: probes that skip the choice of C, which takes two thirds of a cell's time."""

import pytest
from helpers.kill_study import fixed_c

import ntps.scoring.probes


@pytest.fixture(scope="module", autouse=True)
def _fast_probes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ntps.scoring.probes, "choose_c", fixed_c)
        yield
