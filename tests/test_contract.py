"""What every public name promises: it is there and documented, its options act or are refused, its results are JSON."""

import ast
import dataclasses
import doctest
import gc
import importlib
import inspect
import json
import math
import pkgutil
import re
import weakref
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from helpers.gains import fixed
from helpers.problems import make_problem, representations_of, solve, word_task
from helpers.results import make_ranking, make_study, score_result

import ntps
from ntps._files import Record
from ntps.core import NextTokenMoments
from ntps.tasks import LabelColumn

SIGNED = re.compile(r":[<>^]?\+\d*\.\d[f%]")  # a format without z

# Public names


@pytest.mark.parametrize("name", ntps.__all__)
def test_public_names_can_be_imported_and_say_what_they_are(name):
    value = getattr(ntps, name)
    if name != "__version__":
        assert value.__doc__, name
        assert value.__doc__.split("\n")[0].rstrip().endswith((".", ":")), name


def test_public_names_are_the_imports_for_type_checkers():
    """Editors complete from one list, Python imports from the other."""
    tree = ast.parse(Path(ntps.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted([*imported, "NtpsError", "__version__"]) == sorted(ntps.__all__) == sorted(dir(ntps))
    assert ntps.__all__ == sorted(ntps.__all__)
    for name, module in imported.items():
        assert getattr(importlib.import_module(module), name) is getattr(ntps, name), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ntps' has no attribute 'scroe'"):
        ntps.scroe  # noqa: B018


def modules():
    names = [module.name for module in pkgutil.walk_packages(ntps.__path__, "ntps.")]
    return [importlib.import_module(name) for name in names if name != "ntps.__main__"]


def test_no_module_bears_the_name_of_a_public_function():
    """`ntps.study.calibrate` must be one thing."""
    functions = {name for name in ntps.__all__ if inspect.isfunction(getattr(ntps, name))}
    assert functions.isdisjoint({module.__name__.rpartition(".")[2] for module in modules()})


@pytest.mark.slow
def test_no_change_is_printed_as_minus_nothing():
    """A number with a sign is formatted with `z`: -0.04 to one digit is +0.0."""
    files = [*Path(ntps.__file__).parent.rglob("*.py"), *(Path(__file__).parents[1] / "notebooks").rglob("*.py")]
    assert [f"{path.name}: {found}" for path in files for found in SIGNED.findall(path.read_text())] == []


def test_only_what_takes_the_options_of_a_command_has_more_than_eight_parameters():
    long = set()
    for path in Path(ntps.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.parent.name != "cli" and isinstance(node, ast.FunctionDef):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > 8:
                    long.add(node.name)
    assert {"score", "repeat"} <= long  # `repeat` is `ntps lora --seeds`
    assert long <= {*ntps.__all__, "repeat"}


def test_the_example_of_the_package_runs():
    results = doctest.testmod(ntps)
    assert results.attempted >= 6
    assert results.failed == 0


# Options


def keyword_only(function):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize(
    ("command", "name", "least", "differing"),
    [
        # `layers` of the shell are those of the pass, `--control` asks for what is an argument in Python.
        ("score", "score", 9, {"layers", "control"}),
        ("score", "collect", 7, set()),
        # The seed of the shell is that of sample and folds too; in Python a seed without random weights is refused.
        ("score", "load_model", 6, {"seed"}),
        ("score", "load_task", 8, set()),
        # `--lora` asks for what are settings in Python.
        ("study", "run_study", 2, {"output", "lora"}),
        ("study", "study.study_executor", 4, set()),
    ],
)
def test_an_option_has_one_default_in_python_and_in_the_shell(command, name, least, differing):
    from ntps.cli.app import app

    shell = {option.name: option.default for option in typer.main.get_command(app).commands[command].params}
    function = attrgetter(name)(ntps)
    python = inspect.signature(function).parameters
    shared = [option for option in keyword_only(function) if option in shell and option not in differing]
    assert len(shared) >= least, shared
    assert {option: shell[option] for option in shared} == {option: python[option].default for option in shared}


@pytest.mark.parametrize(("command", "prefix"), [("lora", ""), ("study", "lora_")])
def test_every_option_of_training_is_there_in_the_shell_with_its_default(command, prefix):
    from ntps.cli.app import app
    from ntps.finetune import TrainSettings

    shell = {option.name: option.default for option in typer.main.get_command(app).commands[command].params}
    for field in dataclasses.fields(TrainSettings):
        if field.name != "max_length":  # one for scores and training
            assert shell[prefix + field.name] == field.default, field.name
    assert "recipe" in shell and "test_split" in shell and "max_length" in shell


@pytest.fixture(scope="module")
def scored():
    problem = make_problem(seed=1, n=90, d=12)
    stacks = problem.texts, [np.sin(h) for h in problem.texts]
    fresh = representations_of(problem, *([np.tanh(h) for h in texts] for texts in stacks))
    return representations_of(problem, *stacks), fresh, problem.labels


SCORE_OPTIONS = {
    "labels": lambda fresh, labels: labels % 2,
    "control": lambda fresh, labels: fresh,
    "layers": [1],
    "folds": 3,
    "seed": 1,
    "k_u": 1,
    "k_v": 7,
    "center": True,
    "convention": "official",
    "fraction": 0.5,
    "rtol": 0.3,
    "permutations": 3,
    "intervals": True,
    "probes": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", keyword_only(ntps.score))
def test_every_option_of_score_changes_the_result(scored, name):
    representations, fresh, labels = scored
    value = SCORE_OPTIONS[name]
    value = value(fresh, labels) if callable(value) else value
    part = "baselines" if name == "probes" else "layers"
    beside = {} if name == "probes" else {"probes": False}  # most of the time
    beside |= {"convention": "official"} if name == "fraction" else {}
    plain = ntps.score(representations, **beside).to_dict()
    assert plain == ntps.score(representations, **beside).to_dict()
    assert ntps.score(representations, **beside, **{name: value}).to_dict()[part] != plain[part]


@pytest.mark.parametrize(
    "values", [np.linspace(0, 1, 40), np.arange(80).reshape(40, 2) % 7 % 2], ids=["real", "labels"]
)
def test_what_needs_classes_refuses_other_tasks_before_a_model_is_loaded(tiny_llama, tmp_path, values):
    from ntps.finetune import fine_tune
    from ntps.finetune.look import look_at_training

    task = ntps.Task.of("t", word_task(40).texts, values, ("a", "b") if values.ndim == 2 else ())
    model = ntps.load_model(tiny_llama, device="cpu")
    for run in (
        lambda: ntps.run_study(["./gone"], [task], output=tmp_path / "study"),
        lambda: ntps.prescreen("./gone", [task]),
        lambda: ntps.before_and_after("./gone", task),
        lambda: fine_tune(model, task, task),
        lambda: look_at_training(model, task),
    ):
        with pytest.raises(ntps.NtpsError, match=r"t is a (regression|multilabel) task, and .* needs classes"):
            run()
    assert not list(tmp_path.iterdir())


COLLECT_OPTIONS = {
    "layers": [1, 2],
    "max_length": 3,
    "pooling": "last",
    "prefix": "last",
    "batch_size": 7,
    "matmul_precision": "medium",
    "state_dtype": "float16",
    "folder": "kept",
    "progress": True,
}


@pytest.mark.parametrize("name", keyword_only(ntps.collect))
def test_every_option_of_collect_acts(tiny_llama, tmp_path, monkeypatch, capfd, name):
    seen, products = [], NextTokenMoments._products

    def watched(self, states, *rest):
        seen.append((len(states), torch.get_float32_matmul_precision()))
        return products(self, states, *rest)

    monkeypatch.setattr(NextTokenMoments, "_products", watched)
    monkeypatch.chdir(tmp_path)
    model, task = ntps.load_model(tiny_llama, device="cpu"), word_task(20)

    def observed(**options):
        seen.clear()
        found = ntps.collect(model, task, **options)
        arrays = [found.states.tobytes(), found.next_token.past_gram.numpy().tobytes(), found.states.dtype]
        return [*arrays, found.layers, seen[:], list(tmp_path.rglob("*.safetensors")), bool(capfd.readouterr().err)]

    plain = observed()
    assert plain == observed()
    assert plain != observed(**{name: COLLECT_OPTIONS[name]})


# Results


def results():
    """An instance of each class with `to_dict`, and the fields that are left out of it."""
    from ntps.finetune.changes import Intruders, LayerChange, Parts
    from ntps.finetune.look import Look
    from ntps.finetune.results import LoraRepeats, LoraResult, Side
    from ntps.finetune.settings import TrainSettings
    from ntps.models.plan import PassPlan, PassSettings
    from ntps.paper import Audit, Finding
    from ntps.scoring import layer_intervals, layer_null, linear_probe, spectrum
    from ntps.study.correlations import spearman
    from ntps.study.plan import StudyPlan
    from ntps.study.prescreening import Prescreening, PrescreenSettings
    from ntps.study.selection import leave_one_out_selection, select_and_correlate

    problem, rng = make_problem(n=60, folds=3), np.random.default_rng(0)
    solved = solve(problem, folds=True)
    null, shown = layer_null(solved, 3, 3, 9), score_result(evidence=True)
    study = make_study(gains=True, n_tasks=5)  # the fewest that can correlate, as one failed
    sides = [
        Side(accuracy=accuracy, balanced_accuracy=0.5, macro_f1=0.5, next_token_loss=None, score=score_result())
        for accuracy in (0.5, 0.7)
    ]
    parts = Parts(before=0.1, after=0.3, u=0.1, v=0.1, both=0.0, scale=0.0)
    run = LoraResult(
        model="m", task="t", n_train=8, n_validation=4, n_test=4, before=sides[0], after=sides[1],
        gain_standard_error=0.1, settings=TrainSettings().to_dict(), seed=0, curve=({"step": 0, "accuracy": math.nan},),
        best_step=2,
    )  # fmt: skip
    ranking = make_ranking()
    grids = rng.normal(size=(3, 2, 6)), rng.normal(size=(2, 6))
    made = [
        (shown, {"metadata", "choice", "readouts", "learning"}),  # arrays; `learning_curve` stands for the last
        (shown.baselines[0], {"readout", "margins", "predicted"}),
        (shown.learning, set()),
        (shown.readout(), {"name", "errors", "baseline", "groups", "origin", "loo_errors"}),  # R^2 and interval instead
        (ntps.compare(shown.readout(0), shown.readout(1)), set()),
        (null, {"fold_sums"}),
        (null.ntps, {"values"}),
        (layer_intervals(solved, 3, 3)["ntps"], set()),
        (linear_probe(solved.states.numpy(), problem.labels, folds=3), set()),
        (parts, set()),
        (LayerChange(layer=1, k_u=2, k_v=3, angles_u=(0.1,), angles_v=(0.2,), ntps=parts, explained=parts,
                     held_out=True), set()),
        (Intruders(module="q", block=None, k=2, count=1, ranks=(1,), cosines=(0.1,), relative_change=0.1), set()),
        (sides[0], {"score", "accuracy_with_validation"}),
        (run, set()),
        (LoraRepeats(runs=(run, run)), {"runs"}),
        (TrainSettings(), set()),
        (Look(steps=2, all_steps=9, n_train=8, n_validation=4, loss=0.7, saved=-0.1, standard_error=0.1, seconds=1.0,
              seconds_left=2.0), set()),
        (PassSettings(layers=(0,), max_length=8), set()),
        (StudyPlan(n_cells=3, n_done=1, n_trainings=1, passes=(), refused={"m on t, seed 0": "no such file."}), set()),
        (PassPlan(model="m", device="cpu", dtype="float32", n_texts=2, n_tokens=6, n_truncated=0, max_length=8,
                  layers=(0,), width=4, batch_size=2, batch_tokens=8, sums_on="cpu",
                  device_bytes={"weights": 8, "sums": 256, "pooled": 32, "batch": 640},
                  host_bytes={"states": 32, "tokens": 96, "sums": 0}, disk_bytes=0), set()),
        (study, {"lora"}),
        (study.cells[0], set()),
        (spearman(rng.normal(size=9), rng.normal(size=9), n_permutations=9), set()),
        (select_and_correlate(*grids, n_permutations=9), {"null", "correlations"}),
        (leave_one_out_selection(*grids, n_permutations=9), {"positions"}),
        (ranking, {"behind"}),  # beside each model
        (ranking.best, {"choice", "learning", "predicted"}),  # its numbers; `learning_curve` stands for the last
        (spectrum(rng.normal(size=(40, 6))), set()),
        (fixed(), set()),
        (Audit(findings=(Finding(key="k", title="t", numbers={"n": math.nan}),)), set()),
        (Finding(key="k", title="t", numbers={"n": math.nan}), {"columns"}),
        (Prescreening(model="m", rows=({"task": "t", "gain": math.nan},), budget=None, calibrations=(fixed(),),
                      settings=PrescreenSettings(), training=TrainSettings(), seconds=1.0), {"rows"}),
    ]  # fmt: skip
    return {type(result).__name__: (result, left_out) for result, left_out in made}


@pytest.fixture(scope="module")
def every_result():
    return results()


def result_classes():
    found = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and hasattr(value, "to_dict")
        and value is not Record
    }
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", result_classes(), ids=lambda kind: kind.__name__)
def test_results_are_frozen_and_strict_json(every_result, kind):
    check_strict_json(*every_result[kind.__name__])


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [np.linspace(0, 1, 60), np.arange(120).reshape(60, 2) % 7 % 2], ids=["real", "labels"]
)
def test_results_without_classes_are_strict_json_too(values):
    problem = make_problem(n=60, folds=3)
    column = LabelColumn("what", values, ("a", "b") if values.ndim == 2 else ())
    result = ntps.score(representations_of(problem), labels=column, permutations=3)
    check_strict_json(result, {"metadata", "choice", "readouts", "learning"})
    predictor, ranking = result.baselines[0], make_ranking()
    check_strict_json(predictor, {"readout", "margins", "predicted"})
    predictor = dataclasses.replace(predictor, readout=ranking.baselines[0].readout)  # of the same texts
    model = dataclasses.replace(ranking.best, probe=None, labels=result.labels)
    check_strict_json(model, {"choice", "learning", "predicted"})
    ranking = dataclasses.replace(
        ranking, kind=result.kind, classes=column.classes, models=(model, *ranking.models[1:]), baselines=(predictor,)
    )
    check_strict_json(ranking, {"behind"})


def check_strict_json(result, left_out):
    kind = type(result)
    assert all(field.kw_only for field in dataclasses.fields(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, dataclasses.fields(kind)[0].name, None)
    names, content = {field.name for field in dataclasses.fields(kind)}, result.to_dict()
    assert names - left_out <= content.keys()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    for name in names:  # a number that is not known is null, however deep it lies
        try:
            unknown = dataclasses.replace(result, **{name: without_numbers(getattr(result, name))})
        except ValueError:  # or refused
            continue
        json.dumps(unknown.to_dict(), allow_nan=False)


def without_numbers(value):
    """The value with NaN for every real number inside."""
    if isinstance(value, float):
        return math.nan
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.full_like(value, math.nan)
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_numbers(item) for item in value)
    if dataclasses.is_dataclass(value):
        changed = {}
        for field in dataclasses.fields(value):
            if field.init:
                changed[field.name] = without_numbers(getattr(value, field.name))
        try:
            return dataclasses.replace(value, **changed)
        except ValueError:
            return value
    return value


# Memory


def reader(name):
    from ntps.study.measure import StudySettings, measure
    from ntps.study.prescreening import frozen_inputs

    return {
        "score": ntps.score,
        "prescreen": frozen_inputs,
        "study": lambda representations: measure(representations, StudySettings(permutations=1)),
    }[name]


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["score", "prescreen", "study"])
def test_solutions_are_dropped_layer_by_layer(name, monkeypatch):
    """A solution is about ten (d, d) matrices: for a wide model, those of all layers would not fit into memory."""
    from ntps.scoring import scores

    solve, solutions, alive = scores.solve_layer, [], []

    def solve_and_count(*arguments, **options):
        gc.collect()
        alive.append(sum(solution() is not None for solution in solutions))
        solved = solve(*arguments, **options)
        solutions.append(weakref.ref(solved))
        return solved

    monkeypatch.setattr(scores, "solve_layer", solve_and_count)
    problem = make_problem(seed=1, n=60, d=6, c=2)
    assert reader(name)(representations_of(problem, *[problem.texts] * 4))
    assert len(alive) == 4
    assert max(alive) <= 1  # the one before, until the next takes its place
