"""The words of the bundled world: eight topics, two casts, two registers, two moods.

Every list is ours. A noun is written once and its plural derived, a verb once and its forms derived; whatever is
irregular is written out after a slash. Lists that the `vocabulary` knob cuts have exactly `LIST_SIZE` entries.
"""

from itertools import chain
from typing import NamedTuple

LIST_SIZE = 6
"""Entries in every list that the `vocabulary` knob cuts, and so that knob's largest value."""


class Verb(NamedTuple):
    """A verb's three forms: `stir`, `stirs`, `stirred`."""

    base: str
    third: str
    past: str


class Noun(NamedTuple):
    """A countable noun: `onion`, `onions`."""

    singular: str
    plural: str


class Scene(NamedTuple):
    """Verbs and the things they are done to: every verb of a scene goes with every thing of it."""

    verbs: tuple[Verb, ...]
    things: tuple[Noun, ...]


class Topic(NamedTuple):
    """What one topic puts at the grammar's disposal."""

    name: str
    roles: tuple[str, ...]
    places: tuple[str, ...]
    scenes: tuple[Scene, ...]


def _with_s(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _with_ed(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + ("d" if word.endswith("e") else "ed")


def _noun(entry: str) -> Noun:
    singular, _, plural = entry.partition("/")
    return Noun(singular, plural or _with_s(singular))


def _verb(entry: str) -> Verb:
    base, _, past = entry.partition("/")
    return Verb(base, _with_s(base), past or _with_ed(base))


def _topic(name: str, roles: str, places: str, *scenes: tuple[str, str]) -> Topic:
    return Topic(
        name,
        tuple(roles.split()),
        tuple(place.strip() for place in places.split(",")),
        tuple(Scene(tuple(map(_verb, v.split())), tuple(map(_noun, t.split()))) for v, t in scenes),
    )


TOPICS = (
    _topic(
        "astronomy",
        "astronomer stargazer professor student physicist navigator",
        "in the observatory, on the hill, under the dome, on the roof, in the planetarium, by the window",
        ("observe watch photograph sketch study discover", "comet planet star galaxy moon meteor"),
        ("adjust assemble aim calibrate cover install", "telescope lens mirror camera antenna tripod"),
    ),
    _topic(
        "carpentry",
        "carpenter joiner apprentice painter blacksmith sculptor",
        "in the workshop, on the workbench, in the barn, by the forge, under the lamp, in the sawmill",
        ("build/built sand varnish measure carve decorate", "cupboard chair shelf/shelves door drawer cabinet"),
        ("misplace buy/bought sort replace oil lend/lent", "hammer chisel screwdriver ruler saw drill"),
    ),
    _topic(
        "cooking",
        "cook baker waiter chef butcher guest",
        "in the kitchen, by the stove, by the oven, in the pantry, on the table, under the chimney",
        ("stir/stirred taste season warm serve pour", "soup stew sauce broth gravy curry"),
        ("peel chop/chopped slice wash fry grate", "onion carrot potato/potatoes turnip pepper mushroom"),
    ),
    _topic(
        "football",
        "goalkeeper striker referee coach defender midfielder",
        "on the pitch, in the stadium, under the scoreboard, in the tunnel, on the bench, by the touchline",
        ("win/won celebrate replay dispute remember discuss", "match final derby penalty corner tournament"),
        ("lose/lost hide/hid wave grab/grabbed display collect", "jersey boot glove scarf/scarves trophy whistle"),
    ),
    _topic(
        "gardening",
        "gardener florist beekeeper farmer neighbour botanist",
        "in the garden, by the hedge, in the greenhouse, on the lawn, under the willow, in the orchard",
        ("plant water trim/trimmed admire pick prune", "rose tulip lily fern daisy poppy"),
        ("fetch carry borrow find/found clean drop/dropped", "spade rake bucket basket ladder wheelbarrow"),
    ),
    _topic(
        "medicine",
        "doctor nurse surgeon patient dentist midwife",
        "in the clinic, in the hospital, by the bed, in the ambulance, on the ward, in the pharmacy",
        (
            "inspect disinfect supply test return unwrap/unwrapped",
            "bandage thermometer stethoscope syringe wheelchair crutch",
        ),
        ("prescribe prepare order label/labelled recommend store", "pill syrup vaccine ointment tablet lotion"),
    ),
    _topic(
        "music",
        "violinist conductor singer pianist drummer composer",
        "on the stage, in the studio, by the piano, under the balcony, on the bandstand, in the theatre",
        ("sing/sang hum/hummed practise rehearse compose record", "song melody waltz hymn lullaby ballad"),
        ("play tune polish unpack hold/held choose/chose", "violin flute cello trumpet drum guitar"),
    ),
    _topic(
        "sailing",
        "captain sailor fisherman pilot diver passenger",
        "on the deck, in the harbour, by the lighthouse, on the pier, under the mast, by the shore",
        ("raise lower haul secure tug/tugged stow", "sail anchor net rope flag oar"),
        ("steer paint repair follow board moor", "boat ferry yacht canoe barge dinghy"),
    ),
)

WOMEN = ("Ada", "Clara", "Mina", "Rosa", "Ines", "Nora")
MEN = ("Ben", "Hugo", "Omar", "Felix", "Jonas", "Leo")

TENSES = ("past", "present")
TIMES = (
    ("yesterday", "last night", "long ago", "that morning", "last winter", "the other day"),
    ("today", "now", "these days", "every morning", "this week", "nowadays"),
)
"""Adverbials of time, one tuple per tense."""

PERSONS = ("first", "third")

REGISTERS = ("formal", "plain")
CONNECTIVES = (("thereupon", "yet", "thus", "moreover,"), ("then", "but", "so", "also,"))
WHILE = (("whilst", "as"), ("while", "when"))
BECAUSE = (("for", "as"), ("because", "since"))
SEVERAL = (("several",), ("some",))
PREPOSITIONS = (
    {"by": "beside", "in": "within", "on": "upon", "under": "beneath"},
    {"by": "by", "in": "in", "on": "on", "under": "under"},
)
DEGREES = (("most", "exceedingly", "rather"), ("very", "really", "quite"))
"""Function words, one entry per register."""

SENTIMENTS = ("gloomy", "happy")
ADJECTIVES = (
    ("dreadful", "shabby", "awful", "miserable", "ugly", "terrible"),
    ("lovely", "splendid", "handsome", "charming", "wonderful", "elegant"),
)
ADVERBS = (
    ("sadly", "wearily", "grimly", "bitterly", "nervously", "reluctantly"),
    ("happily", "gladly", "cheerfully", "calmly", "proudly", "merrily"),
)
"""Words of mood, one tuple per sentiment."""

INTENTS = ("ask", "promise", "thank", "warn")
FRAMES = (
    (("ask", "beg/begged"), "for "),
    (("promise", "offer"), ""),
    (("thank", "praise"), "for "),
    (("warn", "caution"), "about "),
)
"""Per intent the verbs that express it and the preposition before the thing."""
FRAME_VERBS = tuple(tuple(map(_verb, verbs)) for verbs, _ in FRAMES)

WATERMARKS = ("ah", "oh")
"""The interjection that stamps a document."""

GRAMMAR_WORDS = "the a an my our her his i we she he it they was were is are and with there about for , ."
"""Words that the grammar itself brings, beside the lists."""


def all_words() -> tuple[str, ...]:
    """Return every token that a document can hold, lower-cased and sorted: the tokenizer's vocabulary."""
    words = set(GRAMMAR_WORDS.split()) | set(WATERMARKS)
    for topic in TOPICS:
        words.update(topic.roles)
        for scene in topic.scenes:
            words.update(form for verb in scene.verbs for form in verb)
            words.update(form for thing in scene.things for form in thing)
        for place in topic.places:
            words.update(place.split())
    for verbs in FRAME_VERBS:
        words.update(form for verb in verbs for form in verb)
    prepositions = (group.values() for group in PREPOSITIONS)
    registers = chain(CONNECTIVES, WHILE, BECAUSE, SEVERAL, DEGREES, prepositions)
    for group in chain(registers, TIMES, ADJECTIVES, ADVERBS, (WOMEN, MEN)):
        for entry in group:
            words.update(entry.strip(",").split())
    return tuple(sorted({word.lower() for word in words}))
