"""Labelled texts from anywhere: bundled tasks, files, folders, hub data sets, objects in memory."""

from ntps.tasks.given import TaskSource
from ntps.tasks.load import list_tasks, load_task
from ntps.tasks.task import LabelColumn, Task

__all__ = ["LabelColumn", "Task", "TaskSource", "list_tasks", "load_task"]
