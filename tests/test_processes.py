"""How many threads this process uses."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import forks
from threadpoolctl import threadpool_info, threadpool_limits

from ntps._processes import MOST_THREADS, use_threads
from ntps.errors import NtpsError
from ntps.scoring.probes import one_thread

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@pytest.fixture
def restored(monkeypatch):
    """A process whose threads are what they were once the test is over."""
    for name in NAMES:
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        yield
    torch.set_num_threads(before)


def counts():
    return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}


def test_threads_hold_for_every_library_and_for_processes_to_come(restored):
    use_threads(2)
    assert counts() == {2}
    assert {os.environ[name] for name in NAMES} == {"2"}
    with one_thread():  # what is too small for a second thread
        assert counts() == {1}
    assert counts() == {2}
    use_threads(None)
    assert counts() == {2}


@pytest.mark.parametrize("count", [0, -1, MOST_THREADS + 1, 1.5, True, "2"])
def test_numbers_of_threads_that_are_refused(restored, count):
    before = counts()
    with pytest.raises(NtpsError, match="threads is"):
        use_threads(count)
    assert counts() == before


def test_a_process_that_fails_leaves_no_other_waiting(monkeypatch):
    monkeypatch.setattr(forks, "GRACE", 0.1)
    programs = ("import time; time.sleep(60)", "raise SystemExit(3)", "pass")
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    assert forks.exit_codes([process.pid for process in processes]) == [-signal.SIGKILL, 3, 0]
