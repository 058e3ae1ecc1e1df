"""The grammar: writes documents from left to right and keeps the account of every choice.

Choices are of two kinds. A *free* choice (which template, which thing, singular or plural) ignores the factors. An
*expressing* choice listens to exactly one factor: with probability equal to the factor's strength it takes the
document's value, otherwise it takes any value at random.
"""

import math
import random
from typing import Any

from ntps.miniworld import words
from ntps.miniworld.factors import FACTORS, Knobs
from ntps.miniworld.words import TOPICS, Scene, Topic, Verb

SENTENCES = (2, 3, 3, 4, 5, 6, 7, 8)
"""Numbers of sentences, equally likely: so parity and short (at most 4) against long are balanced and independent."""

TEMPLATES = {"action": 32, "named": 14, "description": 10, "intent": 24, "while": 10, "there": 4, "because": 8}
"""Relative weights of the sentence templates after the opening sentence."""

_LOG = (0.0, *(math.log(n) for n in range(1, 100)))
_TEMPLATE_SUM = sum(TEMPLATES.values())
_TEMPLATE_DECK = tuple(name for name, weight in TEMPLATES.items() for _ in range(weight))
_TEMPLATE_LOG_P = {name: math.log(weight / _TEMPLATE_SUM) for name, weight in TEMPLATES.items()}
_PRONOUNS = ("he", "she")
_POSSESSIVES = ("his", "her")


class Writer:
    """Writes one document after the other and keeps the account of its choices."""

    def __init__(self, knobs: Knobs, rng: random.Random) -> None:
        size = int(knobs.vocabulary)
        self.random = rng.random
        self.strengths = {factor: knobs.strength(factor) for factor in FACTORS}
        self.topics = tuple(
            Topic(
                t.name, t.roles[:size], t.places[:size], tuple(Scene(s.verbs[:size], s.things[:size]) for s in t.scenes)
            )
            for t in TOPICS
        )
        self.times = tuple(group[:size] for group in words.TIMES)
        self.adjectives = tuple(group[:size] for group in words.ADJECTIVES)
        self.adverbs = tuple(group[:size] for group in words.ADVERBS)
        self.people = (words.MEN[:size], words.WOMEN[:size])

    # Choices ---------------------------------------------------------------------------------------------------------

    def draw(self, items: Any) -> Any:
        """Draw one of `items` uniformly: a free choice."""
        n = len(items)
        self.log_p -= _LOG[n]
        return items[int(self.random() * n)]

    def chance(self, percent: int) -> bool:
        """Be true in `percent` of all cases: a free choice."""
        hit = self.random() * 100 < percent
        self.log_p += _LOG[percent if hit else 100 - percent] - 2 * _LOG[10]
        return hit

    def express(self, factor: str) -> int:
        """Draw a value that follows the document's value of `factor` as strongly as the knob says."""
        counts = self.counts[factor]
        follows = self.random() < self.strengths[factor]
        value = self.factors[factor] if follows else int(self.random() * len(counts))
        counts[value] += 1
        return value

    # Phrases ---------------------------------------------------------------------------------------------------------

    def setting(self) -> None:
        """Choose the sentence's topic and tense."""
        self.topic = self.topics[self.express("topic")]
        self.tense = self.express("tense")

    def verb(self, verb: Verb, third: bool) -> str:
        """Conjugate `verb` in the sentence's tense."""
        if self.tense == 0:
            return verb.past
        return verb.third if third else verb.base

    def be(self, plural: bool) -> str:
        """Conjugate "to be" in the sentence's tense."""
        return (("was", "were") if self.tense == 0 else ("is", "are"))[plural]

    def thing(self, scene: Scene, owner: str | None, adjectives: int, determiners: str = "both") -> tuple[str, bool]:
        """Write a noun phrase and say whether it is plural."""
        noun = self.draw(scene.things)
        plural = self.chance(50)
        self.numbers.append(plural)
        phrase = noun.plural if plural else noun.singular
        if adjectives and self.chance(adjectives):
            phrase = f"{self.draw(self.adjectives[self.express('sentiment')])} {phrase}"
        if determiners == "both":
            determiner = self.draw(("the", "", owner) if owner else ("the", ""))
        else:
            determiner = "" if determiners == "indefinite" else "the"
        if not determiner:
            determiner = self.function_word(words.SEVERAL) if plural else "an" if phrase[0] in "aeiou" else "a"
        return f"{determiner} {phrase}", plural

    def place(self) -> str:
        """Say where, with a preposition in the document's register."""
        preposition, _, where = self.draw(self.topic.places).partition(" ")
        return f"{words.PREPOSITIONS[self.express('register')][preposition]} {where}"

    def actor(self) -> tuple[str, bool, str | None]:
        """Write an actor: the subject, whether it is third person, and its possessive if it has one."""
        if self.express("person") == 0:
            return self.draw((("I", False, "my"), ("we", False, "our")))
        return f"the {self.draw(self.topic.roles)}", True, None

    def mention(self) -> tuple[str, bool, str]:
        """Mention one of the two people again, by name or pronoun."""
        self.subject = self.express("first_mentioned")
        subject = self.cast[self.subject] if self.chance(65) else _PRONOUNS[self.subject]
        return subject, True, _POSSESSIVES[self.subject]

    def clause(self, subject: tuple[str, bool, str | None], adjectives: int = 30) -> tuple[str, bool]:
        """Write subject, verb and object, and say whether the object is plural."""
        scene = self.draw(self.topic.scenes)
        verb = self.verb(self.draw(scene.verbs), subject[1])
        phrase, plural = self.thing(scene, subject[2], adjectives)
        return f"{subject[0]} {verb} {phrase}", plural

    def tail(self, timeless: bool) -> str:
        """End a sentence: nothing, where, in which mood, or, unless `timeless`, when."""
        kind = self.draw(("", "place", "mood") if timeless else ("", "place", "mood", "time"))
        if kind == "place":
            return f" {self.place()}"
        if kind == "time":
            return f" {self.draw(self.times[self.tense])}"
        return f" {self.draw(self.adverbs[self.express('sentiment')])}" if kind else ""

    def function_word(self, groups: tuple[tuple[str, ...], ...]) -> str:
        """Choose a function word in the document's register."""
        return self.draw(groups[self.express("register")])

    # Sentences -------------------------------------------------------------------------------------------------------

    def opening(self) -> str:
        """Name both people, in the order that `first_mentioned` asks for, and set the scene."""
        self.setting()
        time = f"{self.draw(self.times[self.tense])}, " if self.chance(50) else ""
        first = self.factors["first_mentioned"]
        one, other = self.cast[first], self.cast[1 - first]
        scene = self.draw(self.topic.scenes)
        together = self.chance(50)
        verb = self.verb(self.draw(scene.verbs), not together)
        phrase, _ = self.thing(scene, None, 30)
        place = self.place()
        if together:
            return f"{time}{one} and {other} {verb} {phrase} {place}"
        return f"{time}{one} {verb} {phrase} with {other} {place}"

    def sentence(self) -> str:
        """Write one sentence after the opening."""
        kind = _TEMPLATE_DECK[int(self.random() * _TEMPLATE_SUM)]
        self.log_p += _TEMPLATE_LOG_P[kind]
        self.setting()
        lead = ""
        if kind in ("action", "named", "description") and self.chance(40):
            lead = f"{self.function_word(words.CONNECTIVES)} "
        if kind == "action":
            return f"{lead}{self.clause(self.actor())[0]}{self.tail(bool(lead))}"
        if kind == "named":
            return f"{lead}{self.clause(self.mention())[0]}{self.tail(bool(lead))}"
        if kind == "while":
            first = self.clause(self.actor())[0]
            return f"{first} {self.function_word(words.WHILE)} {self.clause(self.mention())[0]}"
        if kind == "because":
            first, plural = self.clause(self.actor(), adjectives=0)
            reason = f"{self.function_word(words.BECAUSE)} {'they' if plural else 'it'} {self.be(plural)}"
            return f"{first} {reason} {self.draw(self.adjectives[self.express('sentiment')])}"
        if kind == "intent":
            subject, _, _ = self.mention()
            intent = self.express("intent")
            verb = self.verb(self.draw(words.FRAME_VERBS[intent]), True)
            phrase, _ = self.thing(self.draw(self.topic.scenes), None, 20)
            return f"{subject} {verb} {self.cast[1 - self.subject]} {words.FRAMES[intent][1]}{phrase}"
        if kind == "there":
            phrase, plural = self.thing(self.draw(self.topic.scenes), None, 60, "indefinite")
            return f"there {self.be(plural)} {phrase} {self.place()}"
        phrase, plural = self.thing(self.draw(self.topic.scenes), None, 0, "definite")
        adjective = self.draw(self.adjectives[self.express("sentiment")])
        return f"{lead}{phrase} {self.be(plural)} {self.function_word(words.DEGREES)} {adjective}"

    def document(self) -> str:
        """Draw the factors and write a document."""
        self.log_p = 0.0
        self.numbers: list[bool] = []
        self.factors = {factor: int(self.random() * len(values)) for factor, values in FACTORS.items()}
        self.counts = {factor: [0] * len(values) for factor, values in FACTORS.items()}
        self.cast = (self.draw(self.people[0]), self.draw(self.people[1]))
        self.n_sentences = self.draw(SENTENCES)
        if self.n_sentences == 3:
            self.log_p += _LOG[2]  # three stands twice among the numbers
        sentences = [self.opening(), *(self.sentence() for _ in range(self.n_sentences - 1))]
        mark = self.factors["watermark"]
        chosen = int(self.random() * self.n_sentences)
        for index, text in enumerate(sentences):
            if index == chosen or (self.strengths["watermark"] and self.random() < self.strengths["watermark"]):
                self.counts["watermark"][mark] += 1
                sentences[index] = f"{words.WATERMARKS[mark]}, {text}"
        return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)
