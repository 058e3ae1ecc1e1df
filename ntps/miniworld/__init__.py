"""The bundled world: a language with known hidden factors, tasks on it, and miniature models pretrained on it.

Everything here is exact where a real corpus is not: what a text hides (`Sample.factors`), how strongly that shapes its
words (`Knobs`), how probable the text is (`log_likelihood`), the loss that no model can beat (`entropy_rate`) and the
accuracy that no reader can beat (`bayes_accuracy`). Importing it loads numpy only.
"""

from ntps.miniworld.checkpoints import describe_model, model_names, model_path
from ntps.miniworld.factors import FACTORS, Knobs
from ntps.miniworld.language import Sample, sample_documents
from ntps.miniworld.likelihood import EntropyRate, entropy_rate, log_likelihood, posterior
from ntps.miniworld.tasks import bayes_accuracy, describe_task, make_task, prediction_gain, task_labels, task_names

__all__ = [
    "FACTORS",
    "EntropyRate",
    "Knobs",
    "Sample",
    "bayes_accuracy",
    "describe_model",
    "describe_task",
    "entropy_rate",
    "log_likelihood",
    "make_task",
    "model_names",
    "model_path",
    "posterior",
    "prediction_gain",
    "sample_documents",
    "task_labels",
    "task_names",
]
