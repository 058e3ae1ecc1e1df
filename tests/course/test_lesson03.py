"""Panel D and the checks of lesson 03: the panel's numbers, and a planted wrong answer for every check."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.kill_study import SETTINGS, make_tasks

from ntps.course import checks as checks_study
from ntps.course.checks.linear import CheckFailed
from ntps.course.widgets.selection import NAMES, SelectionPanel
from ntps.errors import NtpsError
from ntps.study.ranks import grid_spearman
from ntps.study.study import run_study


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_llama):
    return run_study(
        [str(tiny_llama)],
        make_tasks(),
        output=tmp_path_factory.mktemp("s"),
        settings=SETTINGS,
        progress=False,
        control=False,
    )


class TestPanel:
    def test_every_control_changes_the_picture(self, study):
        panel = SelectionPanel(study)
        before = panel.png()
        for name, value in (
            ("layer", 0),
            ("rank", 5),
            ("quantity", NAMES["explained_heldout"]),
            ("tasks", "shuffled once"),
        ):
            panel.set(**{name: value})
            after = panel.png()
            assert after != before
            before = after
            assert "correlation" in panel.reading()

    def test_the_correlation_is_that_of_the_option(self, study):
        panel = SelectionPanel(study).set(layer=3, rank=2)
        values, names = study.options("ntps")
        wanted = study.table("above_majority").to_numpy(dtype=float)
        place = next(i for i, name in enumerate(names) if name == {"depth": 0.75, "share": 1 / 16})
        assert panel.correlation == pytest.approx(grid_spearman(values[place], wanted, n_permutations=1).spearman)

    def test_too_few_tasks(self, study):
        few = replace(study, tasks=study.tasks[:3])
        with pytest.raises(NtpsError, match="at least 4"):
            SelectionPanel(few)


def p_value(observed, null):
    return (1 + np.sum(null >= observed)) / (1 + len(null))


def choose(values, accuracy, task, *, leak=False, signed=False, pearson=False):
    keep = np.ones(len(accuracy), dtype=bool)
    keep[task] = leak
    x, y = values[:, keep], accuracy[keep]
    if not pearson:
        x, y = x.argsort(1).argsort(1), y.argsort().argsort()
    rho = np.array([np.corrcoef(row, y)[0, 1] for row in x])
    return int((rho if signed else np.abs(rho)).argmax())


class TestChecks:
    def test_right_answers_pass(self, capsys):
        checks_study.permutation_p(p_value)
        checks_study.choose_without(choose)
        assert capsys.readouterr().out.count("✓") == 2

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            (lambda o, null: np.mean(null >= o), "count the observed value|divide the hits by 99"),
            (lambda o, null: (1 + np.sum(null > o)) / (1 + len(null)), "ties|should be"),
            (lambda o, null: (1 + np.sum(null <= o)) / (1 + len(null)), "below|should be"),
            (lambda o, null: np.sum(null >= o) + 1, "between 0 and 1"),
            (lambda o, null: None, "return"),
        ],
    )
    def test_wrong_p_values(self, wrong, says):
        with pytest.raises(CheckFailed, match=says):
            checks_study.permutation_p(wrong)

    @pytest.mark.parametrize(("slip", "says"), [("leak", "leaks"), ("signed", "absolute"), ("pearson", "Pearson")])
    def test_wrong_choices(self, slip, says):
        with pytest.raises(CheckFailed, match=says):
            checks_study.choose_without(lambda values, accuracy, task: choose(values, accuracy, task, **{slip: True}))
