"""The bundled world: a language with known hidden factors, tasks on it, and miniature models pretrained on it.

Everything here is exact where a real corpus is not: what a text hides (`Sample.factors`), how strongly that shapes its
words (`Knobs`), how probable the text is (`log_likelihood`), and so the loss that no model can beat, and the accuracy
that no reader can beat (`describe_task`). Importing it loads numpy only.
"""

from ntps.miniworld.checkpoints import describe_model, model_names, model_path
from ntps.miniworld.factors import FACTORS, Knobs
from ntps.miniworld.language import Sample, sample_documents
from ntps.miniworld.likelihood import log_likelihood
from ntps.miniworld.tasks import describe_task, make_task, task_labels, task_names

__all__ = [
    "FACTORS",
    "Knobs",
    "Sample",
    "describe_model",
    "describe_task",
    "log_likelihood",
    "make_task",
    "model_names",
    "model_path",
    "sample_documents",
    "task_labels",
    "task_names",
]
