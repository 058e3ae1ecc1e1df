"""Bad requests to every command: one sentence that names the culprit, status 2, no model has run, nothing is left."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.gains import fixed
from helpers.models import FILMS

from ntps.cli import app as cli

pytestmark = pytest.mark.slow

BIG = 2**64
LONG = "9" * 5000
# (a command line, what its sentence names). MODEL, TASK and what stands in `place` below are there.
SCORE = [
    ("", "model"),
    ("MODEL", "task"),
    ("MODEL TASK extra", "extra"),
    ("MODEL TASK --no-such-option", "--no-such-option"),
    ("MODEL TASK --layers", "--layers"),
    ("MODEL TASK --layers 9", "layer 9"),
    ("MODEL TASK --layers x", "--layers"),
    ("MODEL TASK --layers ''", "--layers"),
    ("MODEL TASK --layers 1,", "--layers"),
    (f"MODEL TASK --layers {LONG}", "--layers"),
    (f"MODEL TASK --layers {BIG}", "layer 18446744073709551616"),
    ("MODEL TASK --limit 0", "--limit"),
    ("MODEL TASK --limit many", "--limit"),
    (f"MODEL TASK --limit {BIG}", "--limit"),
    (f"MODEL TASK --limit {LONG}", "--limit"),
    ("MODEL TASK --limit 1", "one class"),
    ("MODEL TASK --max-length 1", "--max-length"),
    (f"MODEL TASK --max-length {BIG}", "--max-length"),
    ("MODEL TASK --batch-size 0", "--batch-size"),
    (f"MODEL TASK --batch-size {BIG}", "--batch-size"),
    ("MODEL TASK --folds 1", "--folds"),
    ("MODEL TASK --folds 1000", "--folds"),
    ("MODEL TASK --folds many", "--folds"),
    ("MODEL TASK --folds ''", "--folds"),
    ("MODEL TASK --folds ²", "--folds"),
    (f"MODEL TASK --folds {LONG}", "--folds"),
    (f"MODEL TASK --folds {BIG}", "--folds"),
    ("MODEL TASK --intervals --folds 2", "3 folds"),
    ("MODEL TASK --intervals --folds 0", "3 folds"),
    ("MODEL TASK --permutations -1", "--permutations is -1"),
    (f"MODEL TASK --permutations {BIG}", "--permutations"),
    (f"MODEL TASK --permutations {'9' * 25}", "--permutations"),
    ("MODEL TASK --permutations 1.5", "--permutations"),
    ("MODEL TASK --permutations 5 --convention official", "--convention"),
    ("MODEL TASK --control --random-weights", "exclude each other"),
    ("MODEL TASK --control --device-map auto", "--device-map"),
    ("MODEL TASK --pooling sun", "--pooling"),
    ("MODEL TASK --state-dtype int3", "--state-dtype"),
    ("MODEL TASK --matmul-precision best", "--matmul-precision"),
    ("MODEL TASK --prefix sun", "--prefix"),
    ("MODEL TASK --convention mine", "--convention"),
    ("MODEL TASK --rtol 2", "--rtol"),
    ("MODEL TASK --rtol nan", "--rtol"),
    ("MODEL TASK --rtol inf", "--rtol"),
    ("MODEL TASK --k-u 0", "--k-u"),
    ("MODEL TASK --k-u 99", "--k-u"),
    ("MODEL TASK --k-v 0", "--k-v"),
    ("MODEL TASK --k-v 99", "--k-v"),
    (f"MODEL TASK --k-v {BIG}", "--k-v"),
    ("MODEL TASK --dtype int3", "--dtype"),
    ("MODEL TASK --device cuda:99", "--device"),
    ("MODEL TASK --device toaster", "--device"),
    ("MODEL TASK --seed -1", "--seed"),
    (f"MODEL TASK --seed {BIG}", "--seed"),
    (f"MODEL TASK --seed {LONG}", "--seed"),
    ("MODEL TASK --threads 0", "--threads is 0; it must be between 1 and 1024."),
    ("MODEL TASK --threads 1.5", "--threads"),
    (f"MODEL TASK --threads {BIG}", "--threads"),
    ("MODEL TASK --text-column nothing", "nothing"),
    ("MODEL TASK --label-column nothing", "nothing"),
    ("MODEL TASK --label-column text", "text"),
    ("MODEL TASK --regression", "'no' (column 'label') is not a finite number, as --regression needs"),
    ("MODEL TASK --multilabel", "--multilabel needs several label columns"),
    ("MODEL TASK --multilabel --regression", "--regression and --multilabel exclude each other"),
    ("MODEL labels.csv --label-column a --label-column b --multilabel", "'b' has the classes 'x', 'y'"),
    ("MODEL miniworld/topic --regression", "--regression has no meaning for a bundled task"),
    ("MODEL TASK:regression", "'no' (column 'label') is not a finite number"),
    ("MODEL TASK --split test", "--split"),
    ("MODEL TASK --config x", "--config"),
    ("MODEL TASK --revision x", "--revision"),
    ("MODEL TASK --tokenizer nowhere/at/all", "nowhere/at/all"),
    ("MODEL TASK --tokenizer miniwold-base", "tokenizer 'miniwold-base'"),
    ("MODEL+ TASK", "MODEL+: after the +"),
    ("MODEL MODEL", "is the folder of a model"),
    ("MODEL TASK --device cpu --device-map auto", "--device-map is 'auto'; they exclude each other"),
    ("MODEL TASK --k-u 0.5", "integer. See ntps --help."),
    ("MODEL TASK --tokenizer empty", "empty: there is no tokenizer"),
    ("MODEL TASK --tokenizer TASK", "is a file; give the directory"),
    ("'' TASK", "empty"),
    ("~nosuchuser/m TASK", "~nosuchuser"),
    ("./gone TASK", "gone"),
    ("miniworld-huge TASK", "miniworld-huge"),
    ("TASK TASK", "reviews.csv"),
    ("empty TASK", "config.json"),
    (f"{'m' * 5000} TASK", "mmm"),
    (f"./{'m' * 5000} TASK", "mmm"),
    ("'a\nb' TASK", "a b"),
    ("'\x1b[31mred' TASK", "red"),
    ("MODEL ''", "NAME=PATH"),
    ("MODEL ~nosuchuser/x.csv", "~nosuchuser"),
    ("MODEL gone.csv", "gone.csv"),
    (f"MODEL {'t' * 5000}.csv", "ttt"),
    ("MODEL empty", "empty"),
    ("MODEL miniworld/nothing", "nothing"),
    ("MODEL none.csv", "none.csv"),
    ("MODEL one_class.csv", "one class"),
    ("MODEL TASK --output ''", "empty"),
    ("MODEL TASK --output TASK", "is a file"),
    ("MODEL TASK --output TASK/below", "TASK/below"),
    ("MODEL TASK --output foreign", "foreign"),
    ("MODEL TASK --output MODEL", "also what is read"),
    ("MODEL TASK --output ~nosuchuser/x", "~nosuchuser"),
    (f"MODEL TASK --output {'o' * 300}", "ooo"),
    ("MODEL TASK --output /proc/x", "/proc/x"),
    ("MODEL TASK --json ''", "empty"),
    ("MODEL TASK --json foreign", "is a folder"),
    ("MODEL TASK --json new/", "is a folder"),
    ("MODEL TASK --json TASK", "also what is read"),
    ("MODEL TASK --json TASK/x.json", "TASK/x.json"),
    ("MODEL TASK --json /proc/x", "/proc/x"),
    ("MODEL TASK --json ~nosuchuser/x", "~nosuchuser"),
    (f"MODEL TASK --json {'j' * 300}", "jjj"),
]
STUDY = [
    ("", "--model"),
    ("--model MODEL", "--task"),
    ("--task TASK", "--model"),
    ("--model MODEL --task TASK extra", "extra"),
    ("--model MODEL --model MODEL --task TASK", "given twice"),
    ("--model MODEL --task TASK --task TASK", "reviews"),
    ("--model MODEL --task ''", "''"),
    ("--model MODEL --task name=", "name="),
    ("--model MODEL --task =x", "=x"),
    ("--model MODEL --task gone.csv", "gone.csv"),
    ("--model '' --task TASK", "empty"),
    ("--model ./gone --task TASK", "gone"),
    ("--model MODEL --task TASK --limit 1", "--limit"),
    ("--model MODEL --task TASK --regression", "a study needs classes"),
    ("--model MODEL --task TASK --task x=TASK:regression", "a study needs classes"),
    (f"--model MODEL --task TASK --limit {BIG}", "--limit"),
    ("--model MODEL --task TASK --folds 1", "--folds"),
    ("--model MODEL --task TASK --folds auto", "--folds"),
    ("--model MODEL --task TASK --permutations 0", "--permutations"),
    (f"--model MODEL --task TASK --permutations {BIG}", "--permutations"),
    ("--model MODEL --task TASK --seeds 0", "--seeds"),
    (f"--model MODEL --task TASK --seeds {BIG}", "--seeds"),
    ("--model MODEL --task TASK --measure-layers some", "--measure-layers"),
    ("--model MODEL --task TASK --prefix sun", "--prefix"),
    ("--model MODEL --task TASK --pooling sun", "--pooling"),
    ("--model MODEL --task TASK --dtype int3", "--dtype"),
    ("--model MODEL --task TASK --target luck", "--target"),
    ("--model MODEL --task TASK --device toaster", "--device"),
    ("--model MODEL --task TASK --target gain", "--lora"),
    ("--model MODEL --task TASK --batch-size 0", "--batch-size"),
    ("--model MODEL --task TASK --lora --lora-steps 0", "steps"),
    ("--model MODEL --task TASK --lora --lora-rank 0", "rank"),
    ("--model MODEL --task TASK --target training_accuracy", "--convention official"),
    ("--model MODEL --task TASK --recipe paper", "--lora"),
    ("--model MODEL --task TASK --lora --recipe papers", "paper-probe"),
    ("--model MODEL --task TASK --test-split test", "--lora"),
    ("--model MODEL --task TASK --output TASK", "is a file"),
    ("--model MODEL --task TASK --output foreign", "foreign"),
    ("--model MODEL --task TASK --json foreign", "is a folder"),
    ("--model MODEL --task TASK --json TASK", "also what is read"),
    ("--model MODEL --task own=TASK --json TASK", "also what is read"),
    ("--model MODEL --task own=TASK:label=label --json TASK", "also what is read"),
    ("--model MODEL --task TASK:label=label --json TASK", "also what is read"),
    ("--model MODEL+empty --task TASK --output empty", "also what is read"),
    ("--model MODEL --task TASK --threads 0", "--threads is 0"),
    ("--model MODEL --task TASK --threads 1025", "--threads is 1025"),
    ("--model MODEL --task TASK --workers 0", "--workers is 0"),
    ("--model MODEL --task TASK --workers many", "--workers"),
    (f"--model MODEL --task TASK --workers {BIG}", "--workers"),
    (f"--model MODEL --task TASK --workers {10**6}", "at most"),
    (f"--model MODEL --task TASK --workers {10**6} --dask local", "at most"),
    ("--model MODEL --task TASK --workers 2 --dask tcp://127.0.0.1:1", "--dask tcp://127.0.0.1:1 has its own"),
    ("--model MODEL --task TASK --dask nowhere", "--dask is 'nowhere'"),
    ("--model MODEL --task TASK --dask ''", "--dask is ''"),
]
LORA = [
    ("MODEL TASK --steps 0", "--steps"),
    ("MODEL TASK --threads 0", "--threads is 0"),
    (f"MODEL TASK --steps {BIG}", "--steps"),
    ("MODEL TASK --rank 0", "--rank"),
    ("MODEL TASK --rank 1000", "--rank"),
    ("MODEL TASK --alpha 0", "--alpha"),
    ("MODEL TASK --alpha nan", "--alpha"),
    ("MODEL TASK --alpha inf", "--alpha"),
    ("MODEL TASK --dropout 1", "--dropout"),
    ("MODEL TASK --regression", "fine-tuning needs classes"),
    ("MODEL TASK --multilabel", "--multilabel"),
    ("MODEL TASK --dropout nan", "--dropout"),
    ("MODEL TASK --learning-rate 0", "--learning-rate"),
    ("MODEL TASK --learning-rate inf", "--learning-rate"),
    ("MODEL TASK --optimizer sgd", "--optimizer"),
    ("MODEL TASK --method magic", "--method"),
    ("MODEL TASK --target ,", "--target"),
    ("MODEL TASK --rank 4 --target no_such_module", "no_such_module"),
    ("MODEL TASK --rank 4 --start-layer 9", "--start-layer is 9; the last block"),
    ("MODEL TASK --start-layer late", "--start-layer is 'late'; it must be auto or a whole number"),
    ("MODEL TASK --start-layer -1", "--start-layer is -1"),
    ("MODEL TASK --start-layer 1.5", "--start-layer"),
    ("MODEL TASK --accumulation 0", "--accumulation"),
    ("MODEL TASK --evaluate-every 0", "--evaluate-every"),
    ("MODEL TASK --patience 0", "--patience"),
    ("MODEL TASK --margin -1", "--margin"),
    ("MODEL TASK --seed -1", "--seed"),
    (f"MODEL TASK --seed {BIG}", "--seed"),
    ("MODEL TASK --seeds 0", "--seeds"),
    (f"MODEL TASK --seeds {BIG}", "--seeds"),
    ("MODEL TASK --rank 4 --folds 1000", "--folds"),
    ("MODEL TASK --rank 4 --layers 9", "layer 9"),
    ("MODEL TASK --resume", "--output"),
    ("MODEL miniworld/topic --rank 4 --test-split nope", "test texts"),
    ("MODEL TASK --recipe papers", "paper-probe"),
    ("MODEL TASK --rank 4 --fraction 0.5", "--convention"),
    ("MODEL TASK --rank 4 --clip-norm -1", "--clip-norm"),
    ("MODEL TASK --rank 4 --keep first", "--keep"),
    ("MODEL TASK --output MODEL", "name another folder"),
    ("MODEL TASK --output foreign", "foreign"),
    ("MODEL TASK --json foreign", "is a folder"),
    ("MODEL gone.csv", "gone.csv"),
    ("./gone TASK", "gone"),
]
PRESCREEN = [
    ("MODEL", "--task"),
    ("MODEL --task TASK --budget 0", "--budget"),
    ("MODEL --task TASK --threads 0", "--threads is 0"),
    (f"MODEL --task TASK --budget {BIG}", "--budget"),
    ("MODEL --task TASK --probe-steps 7", "--probe-steps"),
    ("MODEL --task TASK --probe-steps 20 --calibration calibration.json", "--probe-steps"),
    ("MODEL --task TASK --budget-seconds -1", "--budget-seconds"),
    ("MODEL --task TASK --budget-seconds nan", "--budget-seconds"),
    ("MODEL --task TASK --seeds 0", "--seeds"),
    ("MODEL --task TASK --output TASK", "is a file"),
    ("MODEL --task TASK --limit 1", "--limit"),
    ("MODEL --task TASK --regression", "a prescreening needs classes"),
    ("MODEL --task TASK --folds 1", "--folds"),
    ("MODEL --task TASK --seed -1", "--seed"),
    (f"MODEL --task TASK --seed {BIG}", "--seed"),
    ("MODEL --task TASK --batch-size 0", "--batch-size"),
    ("MODEL --task TASK --calibration gone.json", "gone.json"),
    ("MODEL --task TASK --calibration ''", "empty"),
    ("MODEL --task TASK --calibration ~nosuchuser/c", "~nosuchuser"),
    ("MODEL --task TASK --calibration TASK", "reviews.csv"),
    ("MODEL --task TASK --calibration empty", "empty"),
    ("MODEL --task TASK --calibration deep.json", "deep.json"),
    ("MODEL --task TASK --calibration digits.json", "digits.json"),
    ("MODEL --task TASK --calibration other.json", "logme"),
    ("MODEL --task TASK --json calibration.json --calibration calibration.json", "also what is read"),
    ("MODEL --task TASK --task TASK", "reviews"),
    ("MODEL --task gone.csv", "gone.csv"),
    ("MODEL --task ''", "''"),
    ("./gone --task TASK", "gone"),
    ("MODEL --task TASK --json foreign", "is a folder"),
]
RANK = [
    ("", "task"),
    ("TASK", "--model"),
    ("TASK --model MODEL extra", "extra"),
    ("TASK --model MODEL --threads 0", "--threads is 0"),
    ("TASK --models nice", "--models"),
    ("TASK --models ''", "--models"),
    ("TASK --model ''", "empty"),
    ("TASK --model MODEL --model MODEL", "named twice"),
    ("TASK --model ./gone", "gone"),
    ("TASK --model ./gone --model ./lost", "lost"),
    ("TASK --model MODEL --layers 9", "layer 9"),
    ("TASK --model MODEL --layers x", "--layers"),
    ("TASK --model MODEL --layers ''", "--layers"),
    ("TASK --model MODEL --pooling max", "--pooling"),
    ("TASK --model MODEL --folds 0", "--folds"),
    ("TASK --model MODEL --folds 1", "--folds"),
    ("TASK --model MODEL --folds 1000", "--folds"),
    ("TASK --model MODEL --folds many", "--folds"),
    ("TASK --model MODEL --k-v 0", "--k-v"),
    ("TASK --model MODEL --k-v x", "--k-v"),
    ("TASK --model MODEL --limit 0", "--limit"),
    ("TASK --model MODEL --limit 1", "one class"),
    ("TASK --model MODEL --max-length 1", "--max-length"),
    ("TASK --model MODEL --batch-size 0", "--batch-size"),
    ("TASK --model MODEL --seed -1", "--seed"),
    (f"TASK --model MODEL --seed {BIG}", "--seed"),
    ("TASK --model MODEL --dtype float8", "--dtype"),
    ("TASK --model MODEL --device cuda:99", "cuda:99"),
    ("TASK --model MODEL --label-column nope", "'nope'"),
    ("TASK --model MODEL --regression", "not a finite number"),
    ("TASK --model MODEL --multilabel", "several label columns"),
    ("labels.csv --model MODEL --label-column a --label-column c --multilabel", "line 3: the label (column 'c')"),
    ("one_value.csv --model MODEL --regression", "one value (0.5)"),
    ("one_value.csv --model MODEL", "as real values with --regression (for score and rank)"),
    ("one_class.csv --model MODEL", "one class"),
    ("gone.csv --model MODEL", "gone.csv"),
    ("none.csv --model MODEL", "none.csv"),
    ("TASK --model MODEL --output TASK", "is a file"),
    ("TASK --model MODEL --output MODEL", "also what is read"),
    ("TASK --model MODEL --output foreign", "foreign"),
    ("TASK --model MODEL --json foreign", "is a folder"),
    ("TASK --model MODEL --json TASK", "also what is read"),
]
OTHERS = [
    ("scor", "scor"),
    ("--nothing", "--nothing"),
    ("list extra", "extra"),
    ("list --json foreign", "is a folder"),
    ("list --json ''", "empty"),
    ("list --json /proc/x", "/proc/x"),
    ("demo --output TASK", "is a file"),
    ("demo --output foreign", "foreign"),
    ("demo --output ''", "empty"),
    ("demo extra", "extra"),
    ("demo --threads 0", "--threads is 0"),
    ("paper nothing", "nothing"),
    ("paper figures --output foreign", "foreign"),
    ("paper audit --json foreign", "is a folder"),
    ("paper words MODEL TASK --output TASK", "is a file"),
]
COMMANDS = {"score": SCORE, "rank": RANK, "study": STUDY, "lora": LORA, "prescreen": PRESCREEN}
REQUESTS = [*((f"{name} {line}", culprit) for name, lines in COMMANDS.items() for line, culprit in lines), *OTHERS]


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny_llama):
    """A folder with everything that a request may name."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_llama, folder / "MODEL")
    rows = [f"{text},{'yes' if n % 2 else 'no'}" for n, text in enumerate(FILMS[:40])]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (folder / "one_class.csv").write_text("text,label\na,x\nb,x\n")
    (folder / "one_value.csv").write_text("text,label\na,0.5\nb,0.5\n")
    (folder / "labels.csv").write_text("text,a,b,c\nu,0,x,1\nv,1,y,\nw,1,x,0\n")
    (folder / "none.csv").write_text("")
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").write_text("precious")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "digits.json").write_text(f'{{"kind": {LONG}}}')
    (folder / "calibration.json").write_text(fixed().to_json())
    (folder / "other.json").write_text(fixed(inputs=("accuracy", "logme")).to_json())
    return folder


@pytest.fixture
def place(kept, monkeypatch):
    monkeypatch.chdir(kept)
    return kept


@pytest.fixture
def forwards():
    """How many texts each batch held that a network read; checks as a model is loaded read one or two rows of ids."""
    count = []

    def read(module, inputs):
        if isinstance(module, torch.nn.Embedding) and len(inputs[0]) > 2:
            count.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(read)
    yield count
    hook.remove()


def listing(folder):
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in Path(folder).rglob("*"))


def test_there_are_enough_of_them():
    assert len(REQUESTS) >= 120
    assert len({line for line, _ in REQUESTS}) == len(REQUESTS)


@pytest.mark.parametrize(
    ("line", "culprit"), REQUESTS, ids=lambda value: "".join(c for c in value if " " <= c < "\x7f")[:60]
)
def test_a_bad_request_is_one_sentence(line, culprit, place, forwards, monkeypatch, capsys):
    arguments = [word.replace("TASK", "reviews.csv") for word in shlex.split(line)]
    monkeypatch.setattr(sys, "argv", ["ntps", *arguments])
    before = listing(place)
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("ntps: ") and err.count("\n") == 1 and len(err) < 1200, err
    assert culprit.replace("TASK", "reviews.csv") in err
    assert "\x1b" not in err
    assert forwards == []
    assert listing(place) == before


def test_the_counter_counts(place, forwards, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["ntps", "score", "MODEL", "reviews.csv", "--no-probes", "--layers", "-1", "--quiet"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert forwards


PROCESSES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
ALONE = [
    "study --model MODEL --task reviews.csv --output new --workers 2",
    "study --model MODEL --task reviews.csv --output new --dask local",
    "prescreen MODEL --task reviews.csv",
    "demo",
]


@pytest.mark.parametrize("line", ALONE)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_is_for_one_process_says_so_once(line, rank, place, forwards, monkeypatch, capsys):
    for name, value in (PROCESSES | {"RANK": rank, "LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["ntps", *line.split()])
    before = listing(place)
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.count("\n") == (1 if rank == "0" else 0)
    assert ("torchrun" in err) == (rank == "0")
    assert forwards == [] and listing(place) == before


def test_a_study_in_several_processes_needs_a_folder(place, forwards, monkeypatch, capsys):
    for name, value in PROCESSES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["ntps", "study", "--model", "MODEL", "--task", "reviews.csv"])
    before = listing(place)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().err) == (
        2, "ntps: ntps study in several processes needs --output, a folder that all of them see.\n",
    )  # fmt: skip
    assert forwards == [] and listing(place) == before


@pytest.mark.parametrize(
    ("names", "culprit"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "auto"}, "WORLD_SIZE is 'auto'"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
        (PROCESSES | {"RANK": ""}, "RANK"),
        (PROCESSES | {"RANK": "first"}, "RANK is 'first'"),
        (PROCESSES | {"RANK": "2"}, "RANK is 2"),
        (PROCESSES | {"LOCAL_RANK": ""}, "LOCAL_RANK"),
        (PROCESSES | {"LOCAL_RANK": "x"}, "LOCAL_RANK"),
        (PROCESSES | {"MASTER_ADDR": ""}, "MASTER_ADDR"),
        (PROCESSES | {"MASTER_PORT": ""}, "MASTER_PORT"),
        (PROCESSES | {"MASTER_PORT": "high"}, "MASTER_PORT"),
    ],
)
def test_an_environment_that_is_half_set_is_one_sentence(names, culprit, place, forwards, monkeypatch, capsys):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["ntps", "score", "MODEL", "reviews.csv"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.count("\n") == 1 and culprit in err and len(err) < 1200
    assert forwards == []


@pytest.mark.parametrize(
    "names",
    [
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "1"},
        {"RANK": "x", "WORLD_SIZE": ""},
        {"LOCAL_RANK": "3"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
        {"SLURM_PROCID": "", "SLURM_NTASKS": "auto"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "x", "PMI_SIZE": ""},
    ],
)
def test_an_environment_that_is_not_meant_for_us_changes_nothing(names, place, monkeypatch, capsys):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    quick = ["--no-probes", "--layers", "-1", "--folds", "0"]
    monkeypatch.setattr(sys, "argv", ["ntps", "score", "MODEL", "reviews.csv", *quick])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code or 0, err) == (0, "")
    assert "40 texts" in out
