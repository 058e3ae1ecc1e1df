"""Commands that are killed at random moments give the same result when they are started again, and leave nothing."""

import json
import os
import signal
import subprocess
import sys
import time
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_one_line(tmp_path, tiny_llama, number, status):
    rows = [f"a good film {n % 7} tree{' the' * (n // 7)},{'yes' if n % 2 else 'no'}" for n in range(60)]
    (tmp_path / "r.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    code = (
        "import sys, time, ntps.cli.app\nimport ntps.models.passes as passes\n"
        "def slow(*_): print('runs', flush=True); time.sleep(60)\n"
        "passes._run = slow\nntps.cli.app.main()"
    )
    arguments = ["score", str(tiny_llama), "r.csv", "--output", "new/out", "--json", "x.json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # where the tests were started by nohup or with &
    ) as run:
        assert run.stdout.readline() == b"runs\n"
        time.sleep(0.2)
        run.send_signal(number)
        _, err = run.communicate(timeout=30)
    assert run.returncode == status
    assert err.decode().strip() == "ntps: interrupted; what was finished is kept."
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]
