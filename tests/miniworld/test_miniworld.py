"""The bundled language: determinism, exact probabilities, factors, tasks, and texts that read well."""

import hashlib
import math
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from helpers.observer import bayes_accuracy, entropy_rate, posterior, prediction_gain
from scipy import stats

from ntps.errors import NtpsError
from ntps.miniworld import (
    FACTORS,
    Knobs,
    describe_task,
    log_likelihood,
    make_task,
    sample_documents,
    task_labels,
    task_names,
)
from ntps.miniworld import words as lexicon
from ntps.miniworld.grammar import Writer
from ntps.miniworld.language import SPLITS

OTHER_WORLD = {"topic": 0.3, "tense": 0.6, "first_mentioned": 0.8, "watermark": 0.4, "noise": 0.1, "vocabulary": 3}


@pytest.fixture(scope="module")
def sample():
    return sample_documents(8000, seed=11)


# Determinism ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_same_documents_in_every_process(hash_seed):
    program = (
        "import hashlib\n"
        "from ntps.miniworld import make_task\n"
        "out = hashlib.sha256()\n"
        "for name in ('topic', 'noise', 'agreement'):\n"
        "    task = make_task(name, n=50, seed=3, split='test', sentiment=0.2)\n"
        "    out.update(repr((task['texts'], task['labels'].tolist())).encode())\n"
        "print(out.hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    out = hashlib.sha256()
    for name in ("topic", "noise", "agreement"):
        task = make_task(name, n=50, seed=3, split="test", sentiment=0.2)
        out.update(repr((task["texts"], task["labels"].tolist())).encode())
    assert run.stdout.strip() == out.hexdigest()


def test_import_is_light():
    """Nothing heavy beyond what `import ntps` itself needs, and transformers not at all."""
    program = (
        "import sys, ntps; before = set(sys.modules); import ntps.miniworld, ntps.miniworld.tasks\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'sklearn', 'scipy', 'pandas'}\n"
        "print(sorted((set(sys.modules) - before) & heavy), 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"


def test_splits_and_seeds_are_different_streams():
    streams = {
        (split, seed): sample_documents(300, seed=seed, split=split).texts for split in SPLITS for seed in (0, 1)
    }
    for one, other in combinations(streams, 2):
        assert not set(streams[one]) & set(streams[other]), (one, other)


def test_a_longer_sample_begins_with_the_shorter():
    assert sample_documents(40, seed=2).texts == sample_documents(200, seed=2).texts[:40]
    for name in task_names():
        few, many = make_task(name, n=40, seed=2), make_task(name, n=200, seed=2)
        assert few["texts"] == many["texts"][:40]
        np.testing.assert_array_equal(few["labels"], many["labels"][:40])


@pytest.mark.slow
def test_ten_thousand_documents_are_quick():
    start = time.process_time()
    sample_documents(10_000, seed=99)
    assert time.process_time() - start < 3


# Factors --------------------------------------------------------------------------------------------------------------


def hidden(sample):
    derived = {name: task_labels(name, sample) for name in ("length", "parity", "agreement", "noise")}
    return {**sample.factors, **derived}


def test_factors_are_uniform(sample):
    for name, values in hidden(sample).items():
        assert stats.chisquare(np.bincount(values)).pvalue > 1e-3, name


def test_factors_are_independent(sample):
    columns = hidden(sample)
    pairs = list(combinations(columns, 2))
    for one, other in pairs:
        table = np.zeros((columns[one].max() + 1, columns[other].max() + 1))
        np.add.at(table, (columns[one], columns[other]), 1)
        assert stats.chi2_contingency(table).pvalue > 0.01 / len(pairs), (one, other)


def test_factors_show_in_the_words(sample):
    shown = {
        "tense": ({"was", "were"}, {"is", "are"}),
        "person": ({"i", "we"}, {role for topic in lexicon.TOPICS for role in topic.roles}),
    }
    for factor, sets in shown.items():
        for text, value in zip(sample.texts[:1000], sample.factors[factor][:1000], strict=True):
            assert not set(re.findall(r"\w+", text.lower())) & sets[1 - value], (factor, text)
    for text, topic, n in zip(sample.texts, sample.factors["topic"], sample.n_sentences, strict=True):
        nouns = {form for scene in lexicon.TOPICS[topic].scenes for thing in scene.things for form in thing}
        assert nouns & set(re.findall(r"\w+", text.lower()))
        assert text.count(".") == n


def test_overt_labels_can_be_read_off_the_text(sample):
    things = {}
    for topic in lexicon.TOPICS:
        for scene in topic.scenes:
            for thing in scene.things:
                things[thing.singular], things[thing.plural] = False, True
    agreement = []
    for index in range(500):
        tokens = re.findall(r"\w+", sample.texts[index])
        numbers = [things[token] for token in tokens if token in things]
        agreement.append(numbers[0] == numbers[-1])
        woman = next(i for i, token in enumerate(tokens) if token in lexicon.WOMEN)
        man = next(i for i, token in enumerate(tokens) if token in lexicon.MEN)
        assert (woman < man) == bool(sample.factors["first_mentioned"][index])
        marks = [lexicon.WATERMARKS.index(token.lower()) for token in tokens if token.lower() in lexicon.WATERMARKS]
        assert marks == [sample.factors["watermark"][index]]
    # A word such as "drill" or "saw" may be a verb nowhere in the grammar, so nouns are things and nothing else.
    np.testing.assert_array_equal(agreement, sample.agreement[:500])


@pytest.mark.long
def test_strength_zero_hides_and_one_shows():
    for factor in ("topic", "tense", "person", "register", "sentiment", "intent"):
        assert bayes_accuracy(factor, n=500, **{factor: 0.0}) == pytest.approx(1 / len(FACTORS[factor]))
        assert bayes_accuracy(factor, n=500, noise=1.0) == pytest.approx(1 / len(FACTORS[factor]))
        accuracies = [bayes_accuracy(factor, n=1500, **{factor: strength}) for strength in (0.2, 0.6, 1.0)]
        assert accuracies == sorted(accuracies)
        assert accuracies[0] < accuracies[2]


def test_first_mentioned_knob_makes_a_hero():
    tame = sample_documents(500, seed=1)
    hero = sample_documents(500, seed=1, first_mentioned=1.0)
    share = lambda s: np.mean([row[v] / max(1, row.sum()) for row, v in zip(  # noqa: E731
        s.counts["first_mentioned"], s.factors["first_mentioned"], strict=True) if row.sum()])  # fmt: skip
    assert share(hero) == 1.0
    assert abs(share(tame) - 0.5) < 0.05


@pytest.mark.slow
def test_vocabulary_knob_cuts_the_lists():
    few = set(" ".join(sample_documents(2000, vocabulary=1).texts).lower().split())
    many = set(" ".join(sample_documents(2000).texts).lower().split())
    assert len(few) < len(many) / 3


# Exact probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("what", ["opening", "sentence"])
def test_no_sentence_has_two_derivations_and_probabilities_sum_to_one(what):
    knobs = Knobs.of(vocabulary=1, topic=0.9, tense=0.8)
    writer = Writer(knobs, random.Random(5))
    writer.document()
    derivations = defaultdict(set)
    for _ in range(60_000):
        writer.log_p, writer.numbers = 0.0, []
        writer.counts = {factor: [0] * len(values) for factor, values in FACTORS.items()}
        text = getattr(writer, what)()
        log_p = writer.log_p
        for factor, counts in writer.counts.items():
            strength = knobs.strength(factor)
            for value, count in enumerate(counts):
                chance = strength * (value == writer.factors[factor]) + (1 - strength) / len(counts)
                log_p += count * math.log(chance) if count else 0.0
        derivations[text].add((round(log_p, 9), str(writer.counts)))
    assert max(map(len, derivations.values())) == 1
    total = sum(math.exp(log_p) for ((log_p, _),) in derivations.values())
    assert total < 1 + 1e-9
    assert total > (0.98 if what == "opening" else 0.8)  # the rest are rare sentences that were not drawn


def test_log_likelihood_against_brute_force():
    """Sum over every setting of two factors instead of factor by factor."""
    sample = sample_documents(50, seed=4, **OTHER_WORLD)
    both = np.full(50, -np.inf)
    for topic in range(8):
        for tense in range(2):
            log_p = np.full(50, -math.log(16))
            for factor, value in (("topic", topic), ("tense", tense)):
                counts, strength = sample.counts[factor], sample.knobs.strength(factor)
                chances = np.full(counts.shape[1], (1 - strength) / counts.shape[1])
                chances[value] += strength
                log_p = log_p + counts @ np.log(chances)
            both = np.logaddexp(both, log_p)
    counts = {f: np.zeros_like(c) if f in ("topic", "tense") else c for f, c in sample.counts.items()}
    rest = log_likelihood(type(sample)(**{**vars(sample), "counts": counts}))
    np.testing.assert_allclose(log_likelihood(sample), rest + both, rtol=1e-12)


def test_posterior_is_calibrated():
    """Among documents to which the posterior gives p, the value holds in a share p."""
    sample = sample_documents(6000, seed=8, **OTHER_WORLD)
    for factor in ("topic", "tense", "person", "register", "sentiment", "intent"):
        chances = posterior(sample, factor)
        np.testing.assert_allclose(chances.sum(axis=1), 1)
        best, right = chances.max(axis=1), chances.argmax(axis=1) == sample.factors[factor]
        for low, high in ((0.0, 0.6), (0.6, 0.85), (0.85, 1.01)):
            bucket = (best >= low) & (best < high)
            if bucket.sum() > 100:
                error = 4 * math.sqrt(0.25 / bucket.sum())
                assert abs(best[bucket].mean() - right[bucket].mean()) < error, (factor, low)


@pytest.mark.long
@pytest.mark.parametrize("name", task_names())
def test_bayes_accuracy(name):
    info = describe_task(name)
    assert bayes_accuracy(name) == pytest.approx(info["bayes"], abs=0.0051)  # what the description says
    assert f"{info['bayes']:.2f}" in info["description"]
    if name in FACTORS:  # the exact mean of the posterior against guessing by it, on other documents
        sample = sample_documents(4000, seed=21, split="test")
        guesses = posterior(sample, name).argmax(axis=1)
        assert np.mean(guesses == sample.factors[name]) == pytest.approx(info["bayes"], abs=0.03)


def test_entropy_rate():
    default = entropy_rate(3000)
    assert 0 < default.given_factors < default.rate
    # Told the factors, an observer saves their entropy at most.
    most = sum(math.log(len(values)) for values in FACTORS.values()) / default.tokens_per_document
    assert default.rate - default.given_factors < most
    assert default.standard_error < 0.01
    other = entropy_rate(3000, seed=1)
    assert abs(other.rate - default.rate) < 5 * default.standard_error
    assert entropy_rate(1000, vocabulary=2).rate < default.rate
    free = entropy_rate(1000, noise=1.0)  # factors without any effect, but for the two that every text shows
    assert (free.rate - free.given_factors) * free.tokens_per_document == pytest.approx(2 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", task_names())
def test_prediction_gain(name):
    info = describe_task(name)
    assert prediction_gain(name) == pytest.approx(info["gain"], abs=0.051 if info["gain"] > 1 else 0.021)
    if name in FACTORS:
        assert prediction_gain(name, n=300, **{name: 0.0}) == pytest.approx(0, abs=1e-9)
        assert prediction_gain(name, n=300, **{name: 1.0}) > 0.2


def test_prediction_gain_at_strength_one():
    """The first choice tells the factor and the others cost nothing."""
    counts = sample_documents(1000, split="validation").counts["topic"].sum(axis=1)
    assert prediction_gain("topic", n=1000) == pytest.approx(np.mean(counts - 1) * math.log(8))


def test_gains_fall_along_the_list_of_tasks():
    gains = [describe_task(name)["gain"] for name in task_names()]
    assert gains == sorted(gains, reverse=True)
    # Counting sentences saves the difference between a constant hazard and the entropy of their number.
    entropy = math.log(8) - 2 / 8 * math.log(2)
    hazard = 1 / 4.75
    constant = -(math.log(hazard) + 3.75 * math.log(1 - hazard))
    assert prediction_gain("length") == pytest.approx(constant - entropy)


# Readable texts -------------------------------------------------------------------------------------------------------


def test_texts_are_well_formed(sample):
    known = set(lexicon.all_words())
    other = sample_documents(500, seed=1, **OTHER_WORLD)
    for text in sample.texts[:3000] + other.texts:
        assert text == text.strip()
        assert not re.search(r"\s\s|\s[,.]|[,.]{2}|,\w|\.\w", text), text
        sentences = text.removesuffix(".").split(". ")
        assert 2 <= len(sentences) <= 8
        assert all(re.match(r"[A-Z]", sentence) for sentence in sentences), text
        assert not re.search(r"\b[Aa]n [^aeiou]|\b[Aa] [aeiou]", text), text
        assert not re.search(r"\bi\b", text), text
        assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= known, text
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text


def test_verbs_agree(sample):
    present = [text for text, tense in zip(sample.texts, sample.factors["tense"], strict=True) if tense == 1]
    verbs = [verb for topic in lexicon.TOPICS for scene in topic.scenes for verb in scene.verbs]
    verbs += [verb for group in lexicon.FRAME_VERBS for verb in group]
    thirds, bases = {verb.third for verb in verbs}, {verb.base for verb in verbs}
    plurals = {thing.plural for topic in lexicon.TOPICS for scene in topic.scenes for thing in scene.things}
    for text in present:
        for subject, verb in re.findall(r"\b(I|[Ww]e|[Ss]he|[Hh]e) (\w+)", text):
            assert verb in (bases if subject in ("I", "We", "we") else thirds), text
        for word, verb in re.findall(r"(\w+) (is|are) (?:very|really|quite|most|exceedingly|rather)", text):
            assert (verb == "are") == (word in plurals)


def test_lists_have_their_size_and_share_no_thing():
    for topic in lexicon.TOPICS:
        assert len(topic.roles) == len(topic.places) == lexicon.LIST_SIZE
        for scene in topic.scenes:
            assert len(scene.verbs) == len(scene.things) == lexicon.LIST_SIZE
            assert all(verb.past != verb.base for verb in scene.verbs)
    for group in (*lexicon.TIMES, *lexicon.ADJECTIVES, *lexicon.ADVERBS, lexicon.WOMEN, lexicon.MEN):
        assert len(set(group)) == lexicon.LIST_SIZE
    things = [form for topic in lexicon.TOPICS for scene in topic.scenes for thing in scene.things for form in thing]
    assert len(things) == len(set(things))


# Tasks and bad input --------------------------------------------------------------------------------------------------


def test_tasks_share_their_documents_and_differ_in_labels():
    assert len(task_names()) >= 10
    texts = {tuple(make_task(name, n=30)["texts"]) for name in task_names()}
    assert len(texts) == 1
    for name in task_names():
        task = make_task(name, n=2000)
        assert task["labels"].dtype == np.int64
        assert task["labels"].shape == (2000,)
        counts = np.bincount(task["labels"], minlength=len(task["classes"]))
        assert counts.min() > 0.8 * 2000 / len(task["classes"])
        assert describe_task(name)["classes"] == task["classes"]
        assert task["description"] == describe_task(name)["description"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_task("weather"), "miniworld task is 'weather'; choose one of: topic, tense"),
        (lambda: describe_task("weather"), "choose one of: topic"),
        (lambda: make_task("topic", n=7), "n is 7; task topic has 8 classes"),
        (lambda: make_task("topic", n=10.5), "n is 10.5"),
        (lambda: make_task("topic", n="many"), "n is 'many'"),
        (lambda: make_task("topic", split="dev"), "split is 'dev'; choose one of: train, validation, test"),
        (lambda: make_task("topic", split="pretrain"), "split is 'pretrain'"),
        (lambda: make_task("topic", topic=1.2), "knob topic is 1.2; it must be between 0 and 1"),
        (lambda: make_task("topic", noise=-0.1), "knob noise is -0.1"),
        (lambda: make_task("topic", vocabulary=0), "knob vocabulary is 0; it must be between 1 and 6"),
        (lambda: make_task("topic", vocabulary=2.5), "knob vocabulary is 2.5; it must be a whole number"),
        (lambda: make_task("topic", tense="past"), "knob tense is 'past'"),
        (lambda: make_task("topic", tense=float("nan")), "knob tense is nan"),
        (lambda: make_task("topic", colour=1), "knob is 'colour'; choose one of: topic, tense"),
        (lambda: sample_documents(0), "n is 0"),
        (lambda: sample_documents(5, split="dev"), "choose one of: train, validation, test, pretrain"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(NtpsError, match=re.escape(message)):
        call()


def test_smallest_n_is_the_number_of_classes():
    assert len(make_task("topic", n=8)["texts"]) == 8
    assert len(make_task("noise", n=2)["texts"]) == 2
