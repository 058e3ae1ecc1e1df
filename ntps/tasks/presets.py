"""The paper's twelve data sets, by short name.

Source: Cheng, Hu, Huang, Balestriero, Next Token Perception Score, arXiv 2505.17169 (2025). Columns and splits are from
the cards of the data sets.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskPreset:
    """Where a data set of the paper is on the hub, and which columns and splits to read.

    Attributes:
        hub: Name on the hub.
        n_classes: Number of classes.
        description: What is classified.
        text_column: Text column, as for `load_task`.
        label_column: Label column.
        config: Name of the configuration, if there are several.
        revision: Branch to read; `refs/convert/parquet` if the main branch holds a loading script.
        split: Split to read by default.
        splits: All splits whose labels are public.
        hidden: Splits whose labels are not public.
        test: Split on which the paper's code judges, split "paper-test" here; `None` if it cuts 30 % of the rows,
            shuffled with seed 42, from its one split. "paper-train" is "train", or the rest.
        note: What to know before judging results.
    """

    hub: str
    n_classes: int
    description: str
    text_column: str = "text"
    label_column: str = "label"
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    splits: tuple[str, ...] = ("train",)
    hidden: tuple[str, ...] = ()
    test: str | None = "test"
    note: str = ""


_ONE_SPLIT = "there is only a train split: hold texts out with Task.split"
PAPER_SPLITS = ("paper-train", "paper-test")

TASKS: dict[str, TaskPreset] = {
    "rotten_tomatoes": TaskPreset(
        hub="cornell-movie-review-data/rotten_tomatoes",
        n_classes=2,
        description="sentiment of a film-review sentence",
        splits=("train", "validation", "test"),
    ),
    "imdb": TaskPreset(
        hub="stanfordnlp/imdb",
        n_classes=2,
        description="sentiment of a film review",
        splits=("train", "test"),
        note="split 'unsupervised' has no labels; the rows are sorted by label",
    ),
    "sst2": TaskPreset(
        hub="stanfordnlp/sst2",
        text_column="sentence",
        n_classes=2,
        description="sentiment of a film-review phrase",
        splits=("train", "validation"),
        hidden=("test",),
        test="validation",
        note="the labels of split 'test' are hidden (all -1): judge on 'validation'",
    ),
    "emotion": TaskPreset(
        hub="dair-ai/emotion",
        n_classes=6,
        description="emotion of a tweet",
        config="split",
        splits=("train", "validation", "test"),
    ),
    "banking77": TaskPreset(
        hub="legacy-datasets/banking77",
        n_classes=77,
        description="intent of a question to a bank",
        splits=("train", "test"),
        note="the copy at PolyAI/banking77 is a loading script, which current versions of datasets do not run",
    ),
    "sms_spam": TaskPreset(
        hub="ucirvine/sms_spam",
        text_column="sms",
        n_classes=2,
        description="spam among text messages",
        test=None,
        note=_ONE_SPLIT,
    ),
    "clickbait": TaskPreset(
        hub="marksverdhei/clickbait_title_classification",
        text_column="title",
        label_column="clickbait",
        n_classes=2,
        description="clickbait among headlines",
        test=None,
        note=_ONE_SPLIT,
    ),
    "intent_classification": TaskPreset(
        hub="Bhuvaneshwari/intent_classification",
        label_column="intent",
        n_classes=21,
        description="intent of a request to an assistant",
        note=(
            "its files train, valid and test look identical, so a score across them would leak: use 'train' "
            "only and hold texts out with Task.split"
        ),
    ),
    "bias_identification": TaskPreset(
        hub="PriyaPatel/Bias_identification",
        text_column="context",
        label_column="bias_type",
        n_classes=10,
        description="kind of social bias in a sentence",
        splits=("train", "validation", "test"),
    ),
    "medical_questions_pairs": TaskPreset(
        hub="curaihealth/medical_questions_pairs",
        text_column="question_1,question_2",
        n_classes=2,
        description="whether two medical questions mean the same",
        revision="refs/convert/parquet",
        test=None,
        note=(
            f"the two questions are joined by a space (the paper's code reads the first alone in all but 4 rows); "
            f"{_ONE_SPLIT}"
        ),
    ),
    "commonsense_qa": TaskPreset(
        hub="tau/commonsense_qa",
        text_column="question,choices.text",
        label_column="answerKey",
        n_classes=5,
        description="letter of the right answer to a question",
        splits=("train", "validation"),
        hidden=("test",),
        test="validation",
        note=(
            "the question is followed by its five choices, (0) to (4) for the letters A to E; the labels of "
            "split 'test' are hidden: judge on 'validation'"
        ),
    ),
    "climate_sentiment": TaskPreset(
        hub="climatebert/climate_sentiment",
        n_classes=3,
        description="risk, neutral or opportunity in a climate paragraph",
        splits=("train", "test"),
    ),
}
