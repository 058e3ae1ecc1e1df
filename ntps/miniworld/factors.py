"""The hidden factors of a document, and the knobs that set how strongly each shapes the words."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ntps.errors import NtpsError, in_range, one_of
from ntps.miniworld import words

FACTORS: dict[str, tuple[str, ...]] = {
    "topic": tuple(topic.name for topic in words.TOPICS),
    "tense": words.TENSES,
    "person": words.PERSONS,
    "register": words.REGISTERS,
    "sentiment": words.SENTIMENTS,
    "intent": words.INTENTS,
    "first_mentioned": ("man", "woman"),
    "watermark": words.WATERMARKS,
}
"""The hidden factors and their values; every value is equally likely and the factors are independent."""


@dataclass(frozen=True)
class Knobs:
    """How strongly each factor shapes the words.

    Attributes:
        topic: Strength in [0, 1] with which sentences keep to the document's topic. As for the other factors, 0 means
            that the factor leaves no trace, and 1 that every choice expressing it takes its value.
        tense: Strength of the tense in verbs and adverbials of time.
        person: Strength of the person in actors: "I" and "we", or "the cook".
        register: Strength of the register in function words: "whilst", "upon", "several", or "while", "on", "some".
        sentiment: Strength of the sentiment in adjectives and adverbs of mood.
        intent: Strength of the intent in speech acts: ask, promise, thank, warn.
        first_mentioned: Strength in later mentions: at 1 only the person named first is the subject again, at 0 either.
        watermark: Probability of stamping every further sentence with the interjection that stamps one at random.
        noise: Share in [0, 1] of all expressing choices that ignore their factor: it multiplies strengths by 1 - noise.
        vocabulary: Number of words to use of every list of content words and names, 1 to 6.
    """

    topic: float = 1.0
    tense: float = 1.0
    person: float = 1.0
    register: float = 0.9
    sentiment: float = 0.7
    intent: float = 0.9
    first_mentioned: float = 0.0
    watermark: float = 0.0
    noise: float = 0.0
    vocabulary: int = words.LIST_SIZE

    @classmethod
    def of(cls, **knobs: Any) -> "Knobs":
        """Return checked knobs.

        Raises:
            NtpsError: If a knob is unknown or out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in knobs.items():
            one_of(name, names, "knob")
            in_range(value, *((1, words.LIST_SIZE) if name == "vocabulary" else (0, 1)), f"knob {name}")
        if int(knobs.get("vocabulary", words.LIST_SIZE)) != knobs.get("vocabulary", words.LIST_SIZE):
            raise NtpsError(
                f"knob vocabulary is {knobs['vocabulary']!r}; it must be a whole number, 1 to {words.LIST_SIZE}."
            )
        return cls(**knobs)

    def strength(self, factor: str) -> float:
        """Return the probability that a choice follows `factor` on purpose, noise taken into account."""
        return float(getattr(self, factor)) * (1.0 - self.noise)
