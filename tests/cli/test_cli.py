"""The command line: what it prints and writes, and that every bad request is one sentence and status 2."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from ntps.cli import app as cli
from ntps.models import passes

pytestmark = pytest.mark.slow

FIRST = ["a good film", "a bad film it was", "the dog saw a cat", "she read the old book", "rain in the city ."]
TEXTS = [
    f"{text} {word}" for word in ["sun", "rain", "red", "blue", "tree", "dog", "house", "bird"] for text in FIRST
]  # all differ
LABELS = ["yes", "no", "no", "yes", "no"] * 8


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(zip(TEXTS, LABELS, strict=True))
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; return (status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntps", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.mark.parametrize(("texts", "head"), [(40, "accuracy"), (6, "accuracy"), (2, "in sample")])
def test_shares_are_held_out_by_default_as_far_as_texts_go(run, tiny_llama, tmp_path, texts, head):
    path = tmp_path / "few.csv"
    path.write_text("text,label\n" + "".join(f"{TEXTS[n]},{'ab'[n % 2]}\n" for n in range(texts)))
    status, out, err = run("score", tiny_llama, path)
    assert (status, err) == (0, "")
    assert head in out
    status, out, _ = run("score", tiny_llama, path, "--folds", 0)
    assert "in sample" in out and "accuracy" not in out


def test_table_fits_80_columns_marks_one_best_layer_and_says_what_it_means(run, tiny_llama, reviews):
    status, out, err = run("score", tiny_llama, reviews)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line[1:8].strip().isdigit()]
    assert len(rows) == 4
    best = [row[1:8].strip() for row in rows if row.startswith("*")]
    assert len(best) == 1
    assert f"* Layer {best[0]} holds" in out and "Accuracy" in out


def test_json_has_the_contracts_fields(run, tiny_llama, reviews, tmp_path):
    status, out, _ = run("score", tiny_llama, reviews, "--json", tmp_path / "s.json", "--folds", 4, "--layers", "0,-1")
    assert status == 0
    found = json.loads((tmp_path / "s.json").read_text())
    wanted = [
        "schema_version",
        "model",
        "task",
        "n_texts",
        "n_tokens",
        "n_classes",
        "d",
        "convention",
        "settings",
        "layers",
    ]
    assert set(wanted) <= set(found)
    assert [row["layer"] for row in found["layers"]] == [0, 3]
    wanted = [
        "rank_u",
        "rank_v",
        "k_u",
        "k_v",
        "ntps",
        "chance",
        "excess_loss",
        "bounds",
        "explained",
        "ceiling",
        "retained",
        "explained_heldout",
    ]
    for row in found["layers"]:
        assert {*wanted, "ceiling_heldout", "curve"} <= set(row)
        assert {"k_v", "ntps", "excess_loss", "explained", "explained_heldout"} <= set(row["curve"])
        assert row["k_v"] == max(row["k_u"], round(24 / 8))
    status, out, _ = run("score", tiny_llama, reviews, "--json", "-", "--quiet")
    assert json.loads(out)["n_texts"] == len(TEXTS)


def test_official_convention_gives_19_fractions(run, tiny_llama, reviews):
    status, out, _ = run("score", tiny_llama, reviews, "--convention", "official", "--json", "-")
    curve = json.loads(out)["layers"][1]["curve"]
    assert status == 0
    assert curve["fraction"][0] == 0.05 and curve["fraction"][-1] == 0.95
    assert len(curve["ntps"]) == 19


def test_report_is_whole_and_its_pass_serves_again_until_something_changes(
    run, tiny_llama, tiny_gpt2, reviews, tmp_path, monkeypatch, request
):
    runs = []
    once = passes._run
    monkeypatch.setattr(passes, "_run", lambda *a: runs.append(1) or once(*a))
    folder = tmp_path / "report"
    arguments = ["score", tiny_llama, reviews, "--output", folder]
    assert run(*arguments)[0] == 0
    names = {"report.html", "scores.json", "scores.csv", "layers.png", "curve.png", "representations.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page.replace("https://arxiv.org", "")
    first = (folder / "scores.json").read_text()
    heads = page[: page.index("</thead>")]
    assert "<th>R², all directions" in heads and "<th>R² through V" in heads
    # Every table cell of the best layer's row, with what the sentence above it names: the ceiling on held-out texts.
    best = max(json.loads(first)["layers"], key=lambda row: row["ceiling_heldout"])
    assert f"{best['ceiling_heldout']:.3f}" in re.search(r"<tr class=['\"]?best.*?</tr>", page, re.DOTALL)[0]
    status, _, err = run(*arguments)
    assert status == 0 and "using the representations" in err and len(runs) == 1
    assert (folder / "scores.json").read_text() == first
    request.getfixturevalue("sketches")  # what follows looks at the pass
    arguments.append("--no-probes")
    assert "using the representations" in run(*arguments, "--k-v", 5)[2]  # ranks are read off, not collected
    for other in (["--folds", 3], ["--permutations", 5], ["--intervals"], ["--convention", "official"], ["--center"]):
        assert "using the representations" in run(*arguments, *other)[2]  # nothing here is of the pass
    for change in (["--max-length", 3], ["--prefix", "mean"], ["--pooling", "last"], ["--seed", 3, "--limit", 30]):
        before = len(runs)
        assert "using the representations" not in run(*arguments, *change)[2]
        assert len(runs) == before + 1
    assert "using the representations" not in run("score", tiny_gpt2, *arguments[2:])[2]


@pytest.mark.usefixtures("sketches")
def test_evidence_is_in_the_table_and_its_passes_serve_again(run, tiny_llama, reviews, tmp_path):
    options = (
        "--folds",
        4,
        "--permutations",
        20,
        "--intervals",
        "--control",
        "--no-probes",
        "--output",
        tmp_path / "out",
    )
    status, first, _ = run("score", tiny_llama, reviews, *options)
    assert status == 0
    assert max(len(line) for line in first.splitlines() if not line.startswith("Report")) <= 80
    assert "shuffled" in first and "random" in first
    row = json.loads((tmp_path / "out" / "scores.json").read_text())["layers"][0]
    assert {"null", "interval", "control"} <= set(row)
    assert {"ntps", "explained", "explained_heldout", "ceiling_heldout"} == set(row["interval"])
    assert {"ntps", "explained", "ceiling_heldout"} == set(row["null"])
    status, again, err = run("score", tiny_llama, reviews, *options)
    assert err.count("same model, texts and settings") == 2
    assert again == first


@pytest.mark.usefixtures("sketches")
def test_a_damaged_pass_is_named_and_run_again(run, tiny_llama, reviews, tmp_path):
    folder = tmp_path / "report"
    arguments = ["score", tiny_llama, reviews, "--no-probes", "--output", folder]
    run(*arguments)
    path = folder / "representations.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(data)
    status, _, err = run(*arguments)
    assert status == 0 and "damaged" in err


def test_cut_and_empty_texts_are_counted(run, tiny_llama, tmp_path):
    path = tmp_path / "t.jsonl"
    texts = [*TEXTS, "", "the " * 90]
    lines = [{"text": text, "label": place % 2} for place, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, lines)))
    status, _, err = run("score", tiny_llama, path)
    assert status == 0
    assert "1 of 42 texts have no token" in err
    assert "1 of 42 texts are longer than 64 tokens" in err


BAD = [
    (["--layers", "9"], "layer 9"),
    (["--layers", "x"], "--layers"),
    (["--limit", "0"], "--limit"),
    (["--max-length", "1"], "--max-length"),
    (["--batch-size", "0"], "--batch-size"),
    (["--folds", "1"], "--folds"),
    (["--intervals", "--folds", "2"], "3 folds"),
    (["--permutations", "-1"], "--permutations is -1"),
    (["--control", "--random-weights"], "exclude each other"),
    (["--permutations", "5", "--convention", "official"], "--convention"),
    (["--folds", "1000"], "--folds"),
    (["--folds", "many"], "--folds"),
    (["--pooling", "sun"], "--pooling"),
    (["--state-dtype", "int3"], "--state-dtype"),
    (["--rtol", "2"], "--rtol"),
    (["--k-u", "0"], "--k-u"),
    (["--k-u", "99"], "--k-u"),
    (["--k-v", "0"], "--k-v"),
    (["--k-v", "99"], "--k-v"),
    (["--dtype", "int3"], "--dtype"),
    (["--device", "cuda:99"], "--device"),
    (["--prefix", "sun"], "--prefix"),
    (["--convention", "mine"], "--convention"),
    (["--seed", "-1"], "--seed"),
    (["--limit", "many"], "--limit"),
    (["--no-such-option"], "--no-such-option"),
    (["--text-column", "nothing"], "nothing"),
    (["--label-column", "nothing"], "nothing"),
]


@pytest.mark.parametrize(
    ("options", "culprit"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_option_is_one_sentence_and_status_2(run, tiny_llama, reviews, options, culprit):
    status, out, err = run("score", tiny_llama, reviews, *options)
    assert (status, out) == (2, "")
    assert err.startswith("ntps: ") and len(err.splitlines()) == 1
    assert culprit in err


def test_unwritable_output_is_refused_before_the_work(run, tiny_llama, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "_run", lambda *a: pytest.fail("the work had started"))
    (tmp_path / "file").write_text("")
    for options in (["--output", tmp_path / "file"], ["--output", tmp_path / "file" / "in"], ["--json", tmp_path]):
        status, _, err = run("score", tiny_llama, reviews, *options)
        assert status == 2 and str(options[1]) in err and len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == ""


def test_full_disk_is_one_sentence_and_leaves_nothing(run, tiny_llama, reviews, tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ntps._files.os.replace", full)
    status, _, err = run("score", tiny_llama, reviews, "--json", tmp_path / "s.json")
    assert status == 2 and "No space left" in err
    assert not [path for path in tmp_path.iterdir() if path.name != "reviews.csv"]


def test_interruption_is_130_and_keeps_the_pass(run, tiny_llama, reviews, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ntps.scoring.score_task", interrupted)
    folder = tmp_path / "report"
    status, _, err = run("score", tiny_llama, reviews, "--output", folder)
    assert status == 130 and "interrupted" in err
    assert (folder / "representations.safetensors").is_file()


def test_a_fault_of_ours_is_not_passed_off_as_bad_input(run, tiny_llama, reviews, monkeypatch):
    monkeypatch.setattr("ntps.scoring.score_task", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["ntps", "score", str(tiny_llama), reviews])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_version_help_and_no_command(run):
    from ntps import __version__

    assert run("--version") == (0, f"ntps {__version__}\n", "")
    status, out, _ = run("score", "--help")
    assert status == 0 and "Examples" in out
    status, _, err = run("scor")
    assert status == 2 and "scor" in err and len(err.splitlines()) == 1


def test_list_json_names_what_is_bundled(run, tmp_path):
    status, out, _ = run("list", "--json", "-")
    assert status == 0
    found = json.loads(out)
    assert "miniworld-base" in [model["name"] for model in found["models"]]
    assert all(os.path.isdir(model["path"]) for model in found["models"])
    assert "miniworld/topic" in [task["name"] for task in found["tasks"]]
    run("list", "--json", tmp_path / "list.json")
    assert json.loads((tmp_path / "list.json").read_text()) == found
    status, out, _ = run("list")
    assert status == 0 and max(map(len, out.splitlines())) <= 80


def test_module_runs_as_a_command_and_importing_costs_no_transformers():
    heavy = ("transformers", "datasets", "peft", "seaborn", "pandas", "sklearn", "ipywidgets", "matplotlib")
    code = f"import sys, ntps; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "ntps", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("ntps ")


@pytest.mark.long
def test_two_processes_give_the_result_of_one(tiny_llama, tmp_path):
    reviews = tmp_path / "reviews.csv"
    rows = [[" ".join(TEXTS[start:] + TEXTS[:start])[:120], "yes" if start % 3 else "no"] for start in range(40)] * 10
    with reviews.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])  # over 8,192 tokens: each process has some of them
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = ["-m", "ntps", "score", str(tiny_llama), str(reviews), "--dtype", "float64", "--no-probes", "--json"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    subprocess.run([sys.executable, *arguments, str(one)], check=True, env=environment, capture_output=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    done = subprocess.run([*torchrun, *arguments, str(two)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^[*] Layer|^No layer", done.stdout, re.MULTILINE)) == 1  # one process speaks
    assert json.loads(one.read_text())["n_tokens"] > 8192
    for first, second in zip(*(json.loads(path.read_text())["layers"] for path in (one, two)), strict=True):
        for key in ("ntps", "explained", "ceiling", "excess_loss"):
            assert first[key] == pytest.approx(second[key], abs=1e-10)


@pytest.mark.usefixtures("sketches")
def test_two_label_columns_are_scored_from_one_pass(run, tiny_llama, tmp_path, monkeypatch):
    path = tmp_path / "reviews.tsv"
    rows = [
        f"{text}\t{label}\t{'' if index % 5 == 4 else 'ab'[index % 2]}"
        for index, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    path.write_text("\n".join(["text\trating\tcondition", *rows]) + "\n")
    runs, once = [], passes._run
    monkeypatch.setattr(passes, "_run", lambda *a: runs.append(1) or once(*a))
    columns = ["--label-column", "rating", "--label-column", "condition"]
    status, out, _ = run(
        "score", tiny_llama, path, *columns, "--no-probes", "--json", tmp_path / "s.json", "--output", tmp_path / "out"
    )
    assert status == 0 and len(runs) == 1
    both = json.loads((tmp_path / "s.json").read_text())
    assert set(both) == {"schema_version", "tasks"}
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == both
    rating, condition = both["tasks"]
    assert (rating["n_texts"], condition["n_texts"]) == (40, 32)
    assert condition["provenance"]["n_unlabelled"] == 8
    assert len(re.findall("^[*] Layer|^No layer", out, re.MULTILINE)) == 2 and "condition" in out
    assert (tmp_path / "out" / "report.html").read_text().count("condition") >= 1
    for column, among_both in (("rating", rating), ("condition", condition)):
        if column == "condition":
            continue  # alone, its missing labels are refused
        alone = json.loads(run("score", tiny_llama, path, "--label-column", column, "--no-probes", "--json", "-")[1])
        assert alone["layers"] == among_both["layers"]
    status, _, err = run("score", tiny_llama, path, "--label-column", "condition")
    assert status == 2 and "condition" in err


@pytest.mark.usefixtures("sketches")
def test_real_values_are_scored_without_an_accuracy(run, tiny_llama, tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{text},{len(text)}.5,{index if index else ''}" for index, text in enumerate(TEXTS)]
    path.write_text("\n".join(["text,length,place", *rows]) + "\n")
    columns = ["--label-column", "length", "--label-column", "place", "--regression"]
    status, out, _ = run("score", tiny_llama, path, *columns, "--permutations", "3", "--json", tmp_path / "s.json",
                         "--output", tmp_path / "out")  # fmt: skip
    assert status == 0 and max(map(len, out.split("Report:")[0].splitlines())) <= 80
    assert f"{len(TEXTS)} texts, real values" in out and out.count("A dash for accuracy") == 2
    length, place = json.loads((tmp_path / "s.json").read_text())["tasks"]
    assert (length["kind"], length["n_classes"], place["n_texts"]) == ("regression", None, len(TEXTS) - 1)
    assert [row["name"] for row in length["baselines"]] == ["TF-IDF", "the mean"]
    assert length["provenance"]["values"]["max"] == max(map(len, TEXTS)) + 0.5
    assert all(row["null"]["ceiling_heldout"]["p_value"] for row in length["layers"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("real values have no classes") == 2 and "logistic probe" not in page


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["list"], ["score", "--help"]])
def test_what_needs_no_torch_imports_none(arguments):
    code = f"""
import sys
sys.argv = ["ntps", *{arguments!r}]
from ntps.cli.app import main
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_command_and_its_workers_search_little_for_garbage_and_end_at_once():
    code = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # registered first, it runs last
sys.argv = ["ntps", "--version"]
from ntps._processes import process_pool
from ntps.cli.app import main
if __name__ == "__main__":
    with process_pool(1, 1) as pool:
        print(pool.submit(gc.get_threshold).result()[:2], gc.get_freeze_count())
    try:
        main()
    finally:
        print(gc.get_threshold()[:2], gc.get_freeze_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    worker, version, command, frozen_at_the_end = done.stdout.splitlines()
    assert (worker, command, frozen_at_the_end) == ("(20000, 50) 0", "(20000, 50) 0", "True")
    assert version.startswith("ntps ")


@pytest.mark.parametrize("command", ["score", "rank"])
def test_a_dry_run_says_what_a_pass_takes_and_runs_no_model(run, tiny_llama, reviews, tmp_path, monkeypatch, command):
    from ntps import plan_pass
    from ntps.models import load

    monkeypatch.setattr(load, "read_network", lambda *_, **__: pytest.fail("weights are read"))
    arguments = [tiny_llama, reviews] if command == "score" else [reviews, "--model", tiny_llama]
    arguments += ["--dry-run", "--layers", "1,3", "--output", tmp_path / "out"]
    status, out, err = run(command, *arguments)
    plan = plan_pass(str(tiny_llama), TEXTS, layers="1,3")
    assert (status, out, err) == (0, f"{plan}\n", "")
    assert not (tmp_path / "out").exists()
    status, out, err = run(command, *arguments, "--json", "-")
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert (content if command == "score" else content["plans"][0]) == plan.to_dict()


def test_a_dry_run_of_a_study_says_what_is_missing(run, tiny_llama, reviews, tmp_path, monkeypatch):
    from ntps import plan_pass
    from ntps.models import load

    monkeypatch.setattr(load, "read_network", lambda *_, **__: pytest.fail("weights are read"))
    arguments = ["--model", tiny_llama, "--model", tmp_path / "gone", "--task", reviews, "--folds", 3, "--lora"]
    status, out, err = run("study", *arguments, "--dry-run", "--output", tmp_path / "out")
    assert (status, err) == (0, "") and not (tmp_path / "out").exists()
    assert "0 of 6 cells done; missing: 2 passes over texts, 1 training" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "no such directory" in out.replace("\n", " ")
    status, out, err = run("study", *arguments, "--dry-run", "--output", tmp_path / "out", "--json", "-")
    content, one = json.loads(out), plan_pass(str(tiny_llama), TEXTS).to_dict()
    assert content["passes"] == [one, one]
    assert len(content["refused"]) == 3


def test_what_does_not_fit_is_refused_in_options(run, tiny_llama, reviews, monkeypatch):
    from ntps.models import plan

    monkeypatch.setattr(plan, "free_memory", lambda device=None: 300_000)
    status, out, err = run("score", tiny_llama, reviews, "--dry-run", "--device", "cpu")
    assert (status, out) == (2, "")
    assert "it would fit with --batch-size " in err
