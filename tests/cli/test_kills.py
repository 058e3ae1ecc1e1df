"""Commands that are killed at random moments give the same result when they are started again, and leave nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_killed_at_random_moments_they_finish_the_same(tmp_path, tiny_llama):
    """Ten kills of each command, half of them with SIGTERM, which also cleans up at once."""
    script = [sys.executable, str(ROOT / "helpers" / "kill_study.py"), "commands", str(tmp_path), str(tiny_llama)]
    done = subprocess.run([*script, "10", "0"], env=ENV, stdout=subprocess.PIPE, timeout=600, check=True)
    report = json.loads(done.stdout)
    assert report.keys() == {"score", "study", "study-lora", "lora"}
    for name, found in report.items():
        assert found["killed"] >= 10, name
        assert found["equal"], name
        assert found["files_equal"], name
        assert found["left"] == found["left_by_sigterm"] == [], name
        assert set(found["statuses"]) <= {143}, name


SIGNALLED = """
import os, signal, sys, time, ntps.cli.app
import ntps.models.passes as passes
os.chdir({folder!r})
number = signal.Signals({number})  # as it is where no parent, such as nohup, ignores it
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
def slow(*_):
    print("runs", flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)
passes._run = slow
sys.argv = ["ntps", "score", {model!r}, "r.csv", "--output", "new/out", "--json", "x.json"]
ntps.cli.app.main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_one_line(tmp_path, tiny_llama, forks, number, status):
    rows = [f"a good film {n % 7} tree{' the' * (n // 7)},{'yes' if n % 2 else 'no'}" for n in range(60)]
    (tmp_path / "r.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    program = SIGNALLED.format(folder=str(tmp_path), number=int(number), model=str(tiny_llama))
    (done,) = forks.run(program)
    assert (done.returncode, done.stdout) == (status, "runs\n")
    assert done.stderr.strip() == "ntps: interrupted; what was finished is kept."
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]
