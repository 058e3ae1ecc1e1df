"""The tasks of the bundled world, from those that next-token prediction must learn to those it has no use for.

All tasks of one seed, split and setting of the knobs share their documents and differ in the labels only. The Bayes
accuracy of a task is that of a perfect observer of the text who knows the language; the tests compute it.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ntps.errors import NtpsError, one_of
from ntps.miniworld.factors import FACTORS
from ntps.miniworld.language import Sample, sample_documents


@dataclass(frozen=True)
class TaskInfo:
    """One task: its question, and the answers to expect.

    Attributes:
        name: The task's name.
        classes: Names of the labels, in order.
        question: Question that the label answers, in one line.
        reason: Why next-token prediction should or should not care.
        bayes: Bayes accuracy with the default knobs, from 20,000 documents and rounded to two decimals; it is 1
            where the text shows the label outright, and 0.5 for noise.
        care: How much next-token prediction has to care: "a lot", "somewhat", "a little" or "not at all".
        gain: Gain for next-token prediction from inferring the label with the default knobs, in nats per document,
            rounded to two decimals: what a predictor that infers it saves.
    """

    name: str
    classes: tuple[str, ...]
    question: str
    reason: str
    bayes: float
    care: str
    gain: float

    @property
    def description(self) -> str:
        """One paragraph: the question, the Bayes accuracy and the reason."""
        care = f"Next-token prediction cares {self.care} ({self.gain:.2f} nats per document): {self.reason}"
        return f"{self.question} Bayes accuracy {self.bayes:.2f}. {care}"


_INFOS = (
    TaskInfo(
        "topic", FACTORS["topic"], "What the document is about.",
        "the topic decides every noun, verb, place and role that can follow.", 1.0, "a lot", 7.83,
    ),
    TaskInfo(
        "tense", FACTORS["tense"], "Whether it is told in the past or the present.",
        "every verb and every adverbial of time takes its form from it.", 1.0, "a lot", 2.61,
    ),
    TaskInfo(
        "register", FACTORS["register"],
        'Whether it is written in a formal register ("whilst", "upon", "several") or a plain one.',
        "it shapes the function words, about one in every sentence, and nothing else.", 0.99, "somewhat", 1.57,
    ),
    TaskInfo(
        "person", FACTORS["person"], 'Whether "I" and "we" act, or people such as "the cook".',
        "it decides who may act and how the verb ends, but in half of the sentences only.",
        0.92, "somewhat", 0.71,
    ),
    TaskInfo(
        "length", ("long", "short"), "Whether the document has at most four sentences.",
        "counting sentences helps with the end of the text, one token in forty-four; but a mean over tokens shows the "
        "length in any case, because the first token weighs one part in L.", 1.0, "a little", 0.54,
    ),
    TaskInfo(
        "intent", FACTORS["intent"], "What people do with words: ask, promise, thank or warn.",
        "it shapes one verb in a sentence out of four, and many documents have no such sentence.",
        0.65, "a little", 0.26,
    ),
    TaskInfo(
        "sentiment", FACTORS["sentiment"], "Whether the mood is happy or gloomy.",
        "it shapes adjectives and adverbs of mood, in one case of seven the wrong way, so it lowers the loss little.",
        0.86, "a little", 0.25,
    ),
    TaskInfo(
        "parity", ("even", "odd"), "Whether the number of sentences is even.",
        "only the end of the text depends on the count, hardly on its parity, and parity is not linear in it.",
        1.0, "not at all", 0.01,
    ),
    TaskInfo(
        "first_mentioned", FACTORS["first_mentioned"], "Which of the two people is named first, the man or the woman.",
        "both return equally often, so once both are named the order predicts nothing; no bag of words shows it.",
        1.0, "not at all", 0.00,
    ),
    TaskInfo(
        "agreement", ("differ", "agree"), "Whether the first and the last thing mentioned agree in number.",
        "every thing is singular or plural by a fresh toss; the label is an exclusive or of two words far apart.",
        1.0, "not at all", 0.00,
    ),
    TaskInfo(
        "watermark", FACTORS["watermark"], 'Which interjection, "ah" or "oh", stamps one sentence at random.',
        "a single word gives it away to any reader, yet it predicts no other word.", 1.0, "not at all", 0.00,
    ),
    TaskInfo(
        "noise", ("heads", "tails"), "A fair coin, tossed without looking at the text: the control.",
        "there is nothing to learn; whatever a score says of it, it says of chance.", 0.5, "not at all", 0.00,
    ),
)  # fmt: skip
TASKS = {info.name: info for info in _INFOS}


def task_names() -> tuple[str, ...]:
    """Return the tasks' names, from those that next-token prediction must learn to those it has no use for."""
    return tuple(TASKS)


def task_labels(name: str, sample: Sample, *, seed: int = 0, split: str = "train") -> np.ndarray:
    """Return the labels of a task for a sample's documents, (n,) int64.

    Args:
        name: One of `task_names()`.
        sample: The documents.
        seed: Seed of the coin, which the texts do not know.
        split: Split of the coin.

    Raises:
        NtpsError: If there is no such task.
    """
    one_of(name, TASKS, "miniworld task")
    if name in sample.factors:
        return sample.factors[name].copy()
    if name == "agreement":
        return sample.agreement.copy()
    if name == "length":
        return (sample.n_sentences <= 4).astype(np.int64)
    if name == "parity":
        return sample.n_sentences % 2
    coin = random.Random(f"ntps.miniworld/noise/{split}/{seed}")
    return np.array([coin.random() < 0.5 for _ in range(len(sample))], dtype=np.int64)


_documents = lru_cache(maxsize=4)(sample_documents)


def make_task(name: str, *, n: int = 2000, seed: int = 0, split: str = "train", **knobs: Any) -> dict[str, Any]:
    """Write the texts and labels of a task.

    Args:
        name: One of `task_names()`.
        n: Number of documents, at least the number of classes.
        seed: Seed of the documents. All tasks of one seed and split share their documents.
        split: `train`, `validation` or `test`.
        **knobs: Attributes of `ntps.miniworld.Knobs`, such as `topic=0.2`.

    Returns:
        `texts` (list of str), `labels` ((n,) int64), `classes` (tuple of str) and `description`.

    Raises:
        NtpsError: If the task, the split or a knob is unknown or out of range, or `n` is too small.
    """
    info = TASKS[one_of(name, TASKS, "miniworld task")]
    one_of(split, ("train", "validation", "test"), "split")
    if not isinstance(n, (int, np.integer)) or n < len(info.classes):
        raise NtpsError(
            f"n is {n!r}; task {name} has {len(info.classes)} classes and needs a whole number at least as large."
        )
    sample = _documents(int(n), seed=seed, split=split, **knobs)
    return {
        "texts": list(sample.texts),
        "labels": task_labels(name, sample, seed=seed, split=split),
        "classes": info.classes,
        "description": info.description,
    }


def describe_task(name: str) -> dict[str, Any]:
    """Return what is known of a task.

    Returns:
        `name`, `n_classes`, `classes`, `description` (one paragraph), `question`, `reason`, `care`, and with the
        default knobs `bayes`, the Bayes accuracy, and `gain`, what inferring the label is worth to next-token
        prediction in nats per document.

    Raises:
        NtpsError: If there is no such task.
    """
    info = TASKS[one_of(name, TASKS, "miniworld task")]
    return {**vars(info), "n_classes": len(info.classes), "description": info.description}
