"""The hub's protocol as far as loading needs it, served on this machine: online, moved on, gone, and from the cache."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.forks import Forks
from helpers.models import save_tiny

FIRST, SECOND = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "76543210"

LOAD = """
import json, sys, time
from ntps.errors import NtpsError
from ntps.models.load import has_language_model_head, load_model, model_fingerprint
from ntps.tasks.load import load_task
out = {}
for key, call in {
    "fingerprint": lambda: model_fingerprint("org/tiny"),
    "model": lambda: [(m := load_model("org/tiny")).revision, m.fingerprint, model_fingerprint("org/tiny"), m.n_layers],
    "main": lambda: [(m := load_model("org/tiny", revision="main")).revision, m.fingerprint],
    "head": lambda: has_language_model_head("org/tiny"),
    "task": lambda: [(t := load_task("org/data")).fingerprint, t.source["kind"], t.source["split"]],
    "no split": lambda: load_task("org/data", split="nope"),
    "no model": lambda: load_model("org/nothing"),
    "no task": lambda: load_task("org/nothing"),
}.items():
    start = time.perf_counter()
    try:
        out[key] = call()
    except NtpsError as error:
        out[key] = str(error)
    out[key + " seconds"] = time.perf_counter() - start
print(json.dumps(out))
"""


READ = """
import json
import logging
from ntps.errors import NtpsError
from ntps.tasks.load import load_task
logged = []
handler = logging.Handler()
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("ntps.tasks.hub").addHandler(handler)
out = {}
for name, options in SETS.items():
    try:
        task = load_task(f"org/{name}", **options)
        out[name] = [task.texts, [task.classes[label] for label in task.labels]]
    except NtpsError as error:
        out[name] = str(error)
out["logged"] = logged
print(json.dumps(out))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories are folders under `root`; every branch is at `commit`."""

    root: Path
    commit: str

    def log_message(self, *_args):
        """Stay silent."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    do_POST = do_GET

    def answer(self, with_body):
        path = self.path.partition("?")[0].strip("/")
        status, data, headers = 404, b"", {"X-Repo-Commit": self.commit, "X-Error-Code": "RepoNotFound"}
        if not path:
            status, data = 200, b"a hub"
        elif path.startswith("api/"):
            kind, *rest = path.split("/")[1:]
            folder = self.root / kind / "/".join(rest[:2])
            if folder.is_dir():
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                names = [str(file.relative_to(folder)) for file in files]
                about = {"id": "/".join(rest[:2]), "sha": self.commit, "siblings": [{"rfilename": n} for n in names]}
                about |= {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0"}
                    for name, file in zip(names, files, strict=True)
                ]
                status, data = 200, json.dumps(tree if {"tree", "paths-info"} & set(rest) else about).encode()
        elif "/resolve/" in path:
            repository, _, file = path.partition("/resolve/")
            folder = self.root / (repository if repository.startswith("datasets/") else f"models/{repository}")
            target = folder / file.partition("/")[2]
            if target.is_file():
                status, data = 200, target.read_bytes()
                headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            elif folder.is_dir():
                headers["X-Error-Code"] = "EntryNotFound"
        self.send_response(status)
        for name, value in headers.items():
            if not (status == 200 and name == "X-Error-Code"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def served(tmp_path):
    """A hub with the model org/tiny and the data set org/data."""
    save_tiny(tmp_path / "hub/models/org/tiny", "llama")
    (tmp_path / "hub/datasets/org/data").mkdir(parents=True)
    (tmp_path / "hub/datasets/org/data/train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "hub/datasets/org/data/test.csv").write_text("text,label\nc,0\nd,1\n")
    Hub.root, Hub.commit = tmp_path / "hub", FIRST
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    server.forks = Forks(server.environment, "datasets", "ntps.tasks.load")
    yield server
    server.forks.close()
    server.shutdown()
    server.server_close()


def load(server, program=LOAD, **environment):
    """Load everything in a process of its own, since the libraries read the hub's address when they are imported."""
    if environment:  # which they read then, too
        env = server.environment | environment
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    else:
        (done,) = server.forks.run(program)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_the_hub_online_moved_on_gone_and_cached(served, tmp_path):
    online = load(served)
    assert online["model"][0] == online["main"][0] == FIRST
    assert online["model"][1] == online["model"][2] == online["main"][1] == online["fingerprint"]
    assert online["head"] is True
    assert online["task"][1:] == ["hub", "train"]
    assert "train, test" in online["no split"]
    assert "hub" in online["no model"]
    assert "'org/nothing'" in online["no task"]

    Hub.commit = SECOND
    moved = load(served)  # the copy in the cache is good until the branch is asked for
    assert moved["model"][:2] == online["model"][:2]
    assert moved["main"][0] == SECOND
    assert moved["main"][1] != online["main"][1]

    asked_for = load(served, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in asked_for["no model"]
    assert "HF_HUB_OFFLINE" in asked_for["no task"]

    (snapshot,) = (tmp_path / "home").rglob(f"models--org--tiny/snapshots/{SECOND}")
    (snapshot / "tokenizer.json").unlink()  # as an interrupted download leaves it
    healed = load(served)
    assert healed["model"][:2] == moved["main"]
    assert (snapshot / "tokenizer.json").exists()

    served.shutdown()
    served.server_close()
    gone = load(served)
    for offline in (asked_for, gone):
        assert offline["task"] == online["task"]
        assert offline["model"][:2] == offline["main"] == moved["main"]
        assert offline["model"][1] == offline["model"][2] == offline["fingerprint"]
    for key in ("no model", "no task"):
        assert "cache" in gone[key]
        assert gone[f"{key} seconds"] < 3


# Data sets of text files by name: their files, and options.
README = "---\n{}---\nText.\n"
CLASSES = README.format(
    "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n"
    "        names:\n          '0': neg\n          '1': pos\n"
)
WORDS = "text,label\nNA,007\nnull,7\n1.0,007\n2024-01-01,7\n"
SETS = {
    "words": {"train.csv": WORDS},
    "semicolons": {"train.csv": WORDS.replace(",", ";")},
    "tabs": {"train.tsv": WORDS.replace(",", "\t"), "test.tsv": "text\tlabel\na\t0\nb\t1\n"},
    "lines": {
        "train.jsonl": "".join(
            json.dumps({"text": t, "label": c}) + "\n"
            for t, c in (("NA", "007"), ("null", "7"), ("1.0", "007"), ("2024-01-01", "7"))
        )
    },
    "parts": {"train-0.csv": "text,label\nNA,007\nnull,7\n", "train-1.csv": "label,text\n007,1.0\n7,2024-01-01\n"},
    "declared": {"train.csv": "text,label\nNA,0\nnull,1\n", "README.md": CLASSES},
    "named": {
        "train.csv": "a,x\nb,y\n",
        "README.md": README.format(
            "configs:\n- config_name: default\n  data_files: train.csv\n  header: null\n  names: [text, label]\n"
        ),
    },
}


@pytest.mark.long
def test_text_files_on_the_hub_are_read_as_files_are(served, tmp_path):
    for name, files in SETS.items():
        for file, content in files.items():
            path = tmp_path / "hub/datasets/org" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    whole = [["NA", "null", "1.0", "2024-01-01"], ["007", "7", "007", "7"]]
    for split, (texts, labels) in (("train", whole), ("test", [["a"], ["0"]])):
        path = tmp_path / f"hub/datasets/org/columns/{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
    options = {name: {} for name in (*SETS, "columns")}
    program = READ.replace("SETS", repr(options))
    online = load(served, program)
    for name in ("words", "semicolons", "tabs", "lines", "parts", "columns"):
        assert online[name] == whole, name
    assert online["declared"] == [["NA", "null"], ["neg", "pos"]]
    assert online["named"] == [["a", "b"], ["x", "y"]]  # its card asks for another way of reading, which is said
    assert [line.split()[0] for line in online["logged"]] == ["org/named"]
    names = {path.name for path in (tmp_path / "home").rglob("*")}
    assert names >= {"train.tsv", "train.parquet"} and not names & {"test.tsv", "test.parquet"}  # no split but the one
    options_of_test = {"tabs": {"split": "test"}}
    tested = load(served, READ.replace("SETS", repr(options_of_test)))["tabs"]
    assert tested == [["a", "b"], ["0", "1"]]

    served.shutdown()
    served.server_close()
    assert load(served, program) == online
    options = {"columns": {"split": "test"}, "words": {"split": "test"}, "parts": {"revision": "other"}}
    options |= options_of_test
    other = load(served, READ.replace("SETS", repr(options)))
    assert other["tabs"] == tested
    assert "cache" in other["columns"]  # this split was not read before
    assert "org/words has: train" in other["words"]
    assert "cache" in other["parts"]

    (part,) = (tmp_path / "home").rglob("train-1.csv")  # as an interrupted download leaves it
    part.unlink()
    left = load(served, program)
    assert "cache" in left.pop("parts")
    online.pop("parts")
    assert left == online
