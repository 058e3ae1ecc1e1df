"""Commands that are killed at random moments give the same result when they are started again, and leave nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import FILMS, save_tiny

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
    """Six kills of each command, half of them with SIGTERM, which also cleans up at once."""
    script = [sys.executable, str(ROOT / "helpers" / "kill_study.py"), "commands", str(tmp_path), str(tiny_llama)]
    done = subprocess.run([*script, "6", "0"], env=ENV, stdout=subprocess.PIPE, timeout=600, check=True)
    report = json.loads(done.stdout)
    assert report.keys() == {"score", "study", "study-lora", "lora"}
    for name, found in report.items():
        assert found["killed"] >= 6, name
        assert found["equal"], name
        assert found["files_equal"], name
        assert found["left"] == found["left_by_sigterm"] == [], name
        assert set(found["statuses"]) <= {143}, name


SIGNALLED = """
import os, signal, sys, time, ntps, ntps.cli.app
import ntps.models.passes as passes
os.chdir({folder!r})
number = signal.Signals({number})  # as it is where no parent, such as nohup, ignores it
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
def slow(*_):
    print("runs", flush=True)
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    except KeyboardInterrupt:
        {answer}
passes._run = slow
sys.argv = ["ntps", "score", {model!r}, "r.csv", "--output", "new/out", "--json", "x.json"]
ntps.cli.app.main()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "answer", ["raise", "raise ntps.NtpsError('a file is damaged') from None", "raise ValueError('no shape') from None"]
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_one_line(tmp_path, tiny_llama, forks, number, status, answer):
    """Also where compiled code has made another exception of the interruption."""
    rows = [f"{text},{'yes' if n % 2 else 'no'}" for n, text in enumerate(FILMS)]
    (tmp_path / "r.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    program = SIGNALLED.format(folder=str(tmp_path), number=int(number), model=str(tiny_llama), answer=answer)
    (done,) = forks.run(program)
    assert (done.returncode, done.stdout) == (status, "runs\n")
    assert done.stderr.strip() == "ntps: interrupted; what was finished is kept."
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


RANKS = """
import os, signal, sys, ntps.cli.app
import ntps.models.passes as passes
import ntps.report.ranking as pages
from ntps.report.page import Picture
pages.draw_picture = lambda file, alt, *_, **__: Picture(file, alt, b"")
os.chdir({folder!r})
batches = []
def run(model, *rest, original=passes._run, **options):
    print("runs", os.path.basename(model.name), flush=True)
    return original(model, *rest, **options)
def read(reader, *arguments, original=passes.StateReader.read):
    batches.append(reader)
    if len(batches) == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(reader, *arguments)
passes._run, passes.StateReader.read = run, read
sys.argv = ["ntps", "rank", "r.csv", *{models!r}, "--folds", "3", "--batch-size", "15", "--no-control", "--quiet",
            "--output", "{output}"]
ntps.cli.app.main()
"""


@pytest.mark.long
def test_a_ranking_killed_in_a_later_model_reads_no_earlier_one_again(tmp_path, tiny_llama, forks):
    save_tiny(tmp_path / "second", "gpt2")
    rows = [f"{text},{'yes' if n % 2 else 'no'}" for n, text in enumerate(FILMS)]
    (tmp_path / "r.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    models = ["--model", str(tiny_llama), "--model", "second"]

    def run(output, batch=None):
        (done,) = forks.run(RANKS.format(folder=str(tmp_path), models=models, output=output, batch=batch))
        return done.returncode, done.stdout.split("\n\n")[0].splitlines(), done.stderr

    first, second = f"runs {tiny_llama.name}", "runs second"
    assert run("killed", batch=6) == (-signal.SIGKILL, [first, second], "")  # in the second of its four batches
    assert run("killed") == (0, [second], "")
    assert run("whole") == (0, [first, second], "")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    results = [json.loads((folder / "ranking.json").read_text()) for folder in (killed, whole)]
    for result in results:
        for model in result["models"]:
            assert model.pop("seconds") > 0
    assert results[0] == results[1]
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (killed, whole)]
    assert names[0] == names[1] and not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
