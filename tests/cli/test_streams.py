"""What is printed suits every standard output: any encoding, closed, full, or read by `head`."""

import io
import json
import os
import subprocess
import sys

import pytest
from helpers.models import FILMS

from ntps.cli import app as cli
from ntps.cli import options

pytestmark = pytest.mark.slow

TEXTS = FILMS[:40]


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "avis_中文.csv"
    rows = [f"{text},{'très bon' if n % 2 else '差'}" for n, text in enumerate(TEXTS)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line with a standard output of some encoding; return (status, what it wrote, stderr)."""

    def call(encoding, *arguments):
        stream = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["ntps", *map(str, arguments)])
            patch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
            with pytest.raises(SystemExit) as end:
                cli.main()
            sys.stdout.flush()
            written = stream.getvalue()
        return end.value.code or 0, written, capsys.readouterr().err

    return call


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "shift_jis", "utf-8", "utf-16-le"])
def test_a_table_in_any_encoding(run, tiny_llama, reviews, encoding):
    status, written, err = run(encoding, "score", tiny_llama, reviews, "--no-probes", "--layers", "0,-1")
    assert (status, err) == (0, "")
    text = written.decode(encoding)
    assert "40 texts, 2 classes" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    if encoding in ("ascii", "cp1252", "latin-1"):
        assert "█" not in text and "avis_" in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16-le"])
def test_json_is_always_utf_8(run, tiny_llama, reviews, encoding):
    status, written, _ = run(encoding, "score", tiny_llama, reviews, "--no-probes", "--layers", "-1", "--json", "-")
    assert status == 0
    content = json.loads(written.decode("utf-8"))
    assert content["task"] == "avis_中文" and content["provenance"]["classes"] == ["très bon", "差"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("██▌", "###"),
        ("█▎", "# "),
        ("R² – 5 × “x”…", 'R2 - 5 x "x".'),
        ("é中", "\\xe9\\u4e2d"),
        ("±0.1 ≥ 2", "+-0.1 >= 2"),
    ],
)
def test_what_an_encoding_lacks_is_written_more_simply(monkeypatch, text, plain):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    options.plain_output()
    options.say(text)
    assert stream.getvalue().decode("ascii") == plain + "\n"


def test_a_terminal_is_not_steered(capsys):
    options.say("\x1b[31mred\x1b]0;title\x07 \ud800\nnext")
    assert capsys.readouterr().out == "red \ufffd\nnext\n"


def shell(line, **names):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **names}
    ntps = f"{sys.executable} -m ntps"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('ntps', ntps, 1)}"],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("ntps list > /dev/full", 2, "No space left"),
        ("ntps list --json - > /dev/full", 2, "No space left"),
        ("ntps list --json /dev/full", 2, "No space left"),
        ("ntps list >&-", 0, ""),
        ("ntps list --json - >&-", 2, "standard output is closed"),
        ("ntps list 2>&-", 0, ""),
        ("ntps lis 2>&-", 2, ""),
        ("ntps lis 2> /dev/full", 2, ""),
        ("ntps list | head -1", 0, ""),
        ("ntps list --json - | true", 0, ""),
        ("ntps --help | true", 0, ""),
        ("ntps list --json /dev/stdout | head -c 1", 0, ""),
        ("MPLBACKEND=nonsense ntps list", 0, ""),
    ],
)
def test_streams_that_fail_end_in_a_sentence_or_quietly(line, status, words):
    done = shell(line)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("\n") == (1 if words else 0), done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(("words", "command"), [([], "prescreen"), (["paper"], "figures")])
def test_no_command_prints_the_help_in_lines(run, words, command):
    status, written, err = run("utf-8", *words)
    lines = written.decode().splitlines()
    assert (status, err) == (0, "")
    assert len(lines) > 8 and max(map(len, lines)) <= 80
    assert any(line.strip().startswith(command) for line in lines)


def test_a_backend_that_does_not_exist_draws_no_less(forks, tiny_llama, reviews, tmp_path):
    """In a process of its own, as matplotlib reads the variable once."""
    line = f"ntps score {tiny_llama} {reviews} --no-probes --layers -1 --output {tmp_path}/out --quiet"
    program = f"import sys, ntps.cli.app; assert 'matplotlib' not in sys.modules; sys.argv = {line.split()!r}"
    (done,) = forks.run(f"{program}; ntps.cli.app.main()", {"MPLBACKEND": "nonsense"})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "layers.png").is_file()
