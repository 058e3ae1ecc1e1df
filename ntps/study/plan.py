"""What a study will compute and take, before it runs: the cells that are missing, and the passes that they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps._files import Record, jsonable
from ntps._names import shortened
from ntps._text import Column, counted, text_table, wrap
from ntps.errors import NtpsError
from ntps.models.passes import plan_pass
from ntps.models.plan import PassPlan, size_text
from ntps.study.cells import CellStore
from ntps.study.grid import Cell, make_grid
from ntps.study.measure import StudySettings
from ntps.tasks import Task, TaskSource

if TYPE_CHECKING:
    from ntps.finetune.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Record):
    """What a study will compute and take.

    Attributes:
        n_cells: Number of different cells; models of one architecture share their random weights.
        n_done: Number of those that are kept from before.
        n_trainings: Number of missing cells that are trainings, which read their texts again and again.
        passes: Plans of the missing passes, each of one network over the texts of a task.
        refused: Why a model or a task cannot be read, or a pass does not fit, by cell.
    """

    n_cells: int
    n_done: int
    n_trainings: int
    passes: tuple[PassPlan, ...]
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return jsonable({"kind": "ntps-study-plan", **vars(self)})

    def __str__(self) -> str:
        """Return a table of at most 80 columns: the missing passes of each model."""
        passes = "1 pass" if len(self.passes) == 1 else f"{len(self.passes)} passes"
        lines = [
            f"{self.n_done} of {counted(self.n_cells, 'cell')} done; missing: {passes} over texts, "
            f"{counted(self.n_trainings, 'training')}"
        ]
        by_model: dict[str, list[PassPlan]] = {}
        for plan in self.passes:
            by_model.setdefault(plan.model, []).append(plan)
        columns = [
            Column("model", lambda plans: shortened(plans[0].model, 28), words=True),
            Column("passes", len),
            Column("texts", lambda plans: f"{sum(plan.n_texts for plan in plans):,}"),
            Column("tokens", lambda plans: f"{sum(plan.n_tokens for plan in plans):,}"),
            Column("weights", lambda plans: size_text(plans[0].device_bytes["weights"])),
            Column("beside them", lambda plans: size_text(max(plan.beside_model for plan in plans))),
        ]
        if by_model:
            lines += ["", *text_table(columns, by_model.values())]
        for reason in dict.fromkeys(self.refused.values()):
            lines += ["", *wrap(f"Not computed: {reason}")]
        return "\n".join(lines)


def plan_study(
    models: Sequence[str],
    tasks: Sequence[str | Task | TaskSource],
    *,
    output: str | Path,
    settings: StudySettings | None = None,
    lora: "TrainSettings | None" = None,
    device: str | None = None,
    batch_size: int = 32,
) -> StudyPlan:
    """Say what `run_study` will compute and take with the same arguments; texts are tokenized, and no model runs.

    Raises:
        NtpsError: As for `run_study`, but for models and tasks that cannot be read, which the plan names.
    """
    settings, store = settings or StudySettings(), CellStore(output)
    grid = make_grid(models, tasks, settings, lora=settings.training(lora))
    cells = list({cell.key: cell for cell in grid.cells}.values())
    missing: list[Cell] = []
    for cell in cells:
        result, _ = store.read(cell)
        if result is None or not result.done:
            missing.append(cell)
    refused = {str(cell): cell.reason for cell in missing if cell.reason}
    plans: dict[tuple[str, str], PassPlan] = {}  # a model's random weights take what its trained ones do
    passes = []
    for unit in grid.passes(missing):
        first = unit.cells[0]
        if first.kind == "gain":
            continue
        task = unit.tasks[first.task, first.seed]
        place = first.model, task.texts_fingerprint
        try:
            if place not in plans:
                plans[place] = plan_pass(
                    first.model,
                    task,
                    max_length=settings.max_length,
                    batch_size=batch_size,
                    dtype=settings.dtype,
                    device=device,
                    **settings.loading(),
                )
            passes.append(plans[place])
        except NtpsError as error:
            refused |= {str(cell): str(error) for cell in unit.cells}
    n_trainings = sum(cell.kind == "gain" and not cell.reason for cell in missing)
    return StudyPlan(
        n_cells=len(cells),
        n_done=len(cells) - len(missing),
        n_trainings=n_trainings,
        passes=tuple(passes),
        refused=refused,
    )
