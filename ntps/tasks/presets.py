"""The paper's twelve data sets, by short name.

Source: Cheng, Hu, Huang, Balestriero, Next Token Perception Score, arXiv 2505.17169 (2025); the data
sets' own cards for columns and splits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskPreset:
    """Where a data set of the paper lives on the hub and how its columns and splits are to be read.

    Attributes:
        hub: Name on the hub.
        text_column: Text column; several, joined in this order, are separated by commas, and a dot looks into a field.
        label_column: Label column.
        n_classes: Number of classes.
        description: What is classified.
        config: Name of the configuration, where there are several.
        revision: Branch to read; `refs/convert/parquet` where the main branch holds a loading script.
        split: Split read when the reader names none.
        splits: All splits whose labels are public.
        hidden: Splits whose labels are not public.
        note: What to know before judging results.
    """

    hub: str
    text_column: str
    label_column: str
    n_classes: int
    description: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    splits: tuple[str, ...] = ("train",)
    hidden: tuple[str, ...] = ()
    note: str = ""


TASKS: dict[str, TaskPreset] = {
    "rotten_tomatoes": TaskPreset(
        "cornell-movie-review-data/rotten_tomatoes", "text", "label", 2, "sentiment of a film-review sentence",
        splits=("train", "validation", "test"),
    ),
    "imdb": TaskPreset(
        "stanfordnlp/imdb", "text", "label", 2, "sentiment of a film review", splits=("train", "test"),
        note="split 'unsupervised' has no labels; the rows are sorted by label",
    ),
    "sst2": TaskPreset(
        "stanfordnlp/sst2", "sentence", "label", 2, "sentiment of a film-review phrase",
        splits=("train", "validation"), hidden=("test",),
        note="the labels of split 'test' are hidden (all -1): judge on 'validation'",
    ),
    "emotion": TaskPreset(
        "dair-ai/emotion", "text", "label", 6, "emotion of a tweet", config="split",
        splits=("train", "validation", "test"),
    ),
    "banking77": TaskPreset(
        "legacy-datasets/banking77", "text", "label", 77, "intent of a question to a bank", splits=("train", "test"),
        note="the copy at PolyAI/banking77 is a loading script, which current versions of datasets do not run",
    ),
    "sms_spam": TaskPreset(
        "ucirvine/sms_spam", "sms", "label", 2, "spam among text messages",
        note="there is only a train split: hold texts out with Task.split",
    ),
    "clickbait": TaskPreset(
        "marksverdhei/clickbait_title_classification", "title", "clickbait", 2, "clickbait among headlines",
        note="there is only a train split: hold texts out with Task.split",
    ),
    "intent_classification": TaskPreset(
        "Bhuvaneshwari/intent_classification", "text", "intent", 21, "intent of a request to an assistant",
        note="its files train, valid and test look identical, so a score across them would leak: use 'train' only and "
        "hold texts out with Task.split",
    ),
    "bias_identification": TaskPreset(
        "PriyaPatel/Bias_identification", "context", "bias_type", 10, "kind of social bias in a sentence",
        splits=("train", "validation", "test"),
    ),
    "medical_questions_pairs": TaskPreset(
        "curaihealth/medical_questions_pairs", "question_1,question_2", "label", 2,
        "whether two medical questions mean the same", revision="refs/convert/parquet",
        note="the two questions are joined by a blank; there is only a train split: hold texts out with Task.split",
    ),
    "commonsense_qa": TaskPreset(
        "tau/commonsense_qa", "question,choices.text", "answerKey", 5, "letter of the right answer to a question",
        splits=("train", "validation"), hidden=("test",),
        note="the question is followed by its five choices, (0) to (4) for the letters A to E; "
        "the labels of split 'test' are hidden: judge on 'validation'",
    ),
    "climate_sentiment": TaskPreset(
        "climatebert/climate_sentiment", "text", "label", 3, "risk, neutral or opportunity in a climate paragraph",
        splits=("train", "test"),
    ),
}  # fmt: skip
