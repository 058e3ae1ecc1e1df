"""Every command that the paper's tables and figures are to be made with is one that the command line takes."""

import re
import shlex

import pytest
import typer

from ntps.cli.app import app
from ntps.models import presets
from ntps.paper import commands, costs_text
from ntps.paper.rerun import MODELS, TASKS
from ntps.tasks import list_tasks


@pytest.mark.parametrize("row", commands(), ids=lambda row: row.item)
def test_the_command_line_takes_it(row):
    words = shlex.split(re.search(r"ntps [^;]*", row.command).group().replace("$m", "a").replace("$t", "b"))
    command = typer.main.get_command(app)
    for name in words[1:]:
        if name not in getattr(command, "commands", {}):
            break
        command, words = command.commands[name], words[1:]
    context = command.make_context(command.name, words[1:])
    if "trust_remote_code" in context.params:
        assert context.params["trust_remote_code"]  # four of the models have their own code
    assert (row.tokens > 0, row.hours > 0, row.disk > 0) == (True, True, True)


def test_models_and_sets_are_known_by_name():
    assert set(MODELS) == set(presets.MODELS)
    assert set(TASKS.values()) == {row["name"] for row in list_tasks() if row["kind"] == "paper"}


@pytest.mark.slow
def test_costs_add_up_and_say_what_was_assumed():
    rows = {row.item: row for row in commands()}
    assert rows["Figure 1"].hours < 0.1 < rows["Figure 2"].hours
    assert rows["Figure 2"].tokens == pytest.approx(8 * 11e6, rel=0.2)
    text = costs_text()
    assert "assumed" in text and all(row.command in text for row in rows.values())
    table = text[text.rindex("disk (GB)") :]
    assert max(map(len, table.splitlines())) <= 80
