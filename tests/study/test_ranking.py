"""Rankings: the numbers of a score, groups that hold what they say, models that fail, texts in common, sentences."""

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.forks import torchrun
from helpers.models import WORDS, save_tiny
from helpers.problems import make_problem, order_task, representations_of, word_task
from helpers.results import make_ranking

import ntps
from ntps import NtpsError, compare
from ntps.models import passes
from ntps.models.processes import Processes
from ntps.study import RankSettings, rank, ranking
from ntps.study.ranking import _Entrant, _rank_column, _shared_texts, rank_columns
from ntps.study.ranking_results import points, ranges, short_count
from ntps.tasks import LabelColumn, Task

pytestmark = pytest.mark.slow

SETTINGS = RankSettings(folds=3, control=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two causal models and an encoder, tiny and random."""
    folder = tmp_path_factory.mktemp("models")
    return [
        str(save_tiny(folder / name, kind)) for name, kind in (("llama", "llama"), ("gpt", "gpt2"), ("bert", "bert"))
    ]


@pytest.fixture(scope="module")
def task():
    return order_task(72)


@pytest.fixture(scope="module")
def ranked(models, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    return rank(task, [*models, "nothing-here"], settings=replace(SETTINGS, control=True), folder=folder), folder


# Numbers


def test_a_causal_model_has_the_numbers_of_its_score(ranked, models, task):
    for name, path in (("llama", models[0]), ("gpt", models[1])):
        model = ranked[0][name]
        scored = ntps.score(ntps.collect(ntps.load_model(path), task), folds=3)
        best = scored.choice.layer
        assert (model.layer, model.tied) == (best, scored.choice.tied)
        assert model.r2 == pytest.approx(scored.choice.readout.r2, abs=1e-9)
        assert model.interval == pytest.approx(scored.choice.readout.interval(), abs=1e-9)
        assert [value.r2 for value in model.layers] == pytest.approx(
            [row.ceiling_heldout for row in scored.layers], abs=1e-9
        )
        assert model.through_v.r2 == pytest.approx(scored[best].explained_heldout, abs=1e-9)
        assert (model.through_v.ntps, model.through_v.chance) == pytest.approx((scored[best].ntps, scored[best].chance))
        assert model.probe.interval == pytest.approx(scored.baselines[0].interval)
        assert (model.accuracy, model.probe.log_loss) == pytest.approx(
            (scored.baselines[0].accuracy, scored.baselines[0].log_loss)
        )
        assert model.learning.r2 == pytest.approx(scored.learning.r2, abs=1e-9)
        assert model.n_layers == len(scored.layers)


def test_an_encoder_is_ranked_without_a_share_through_v(ranked, models, task):
    model = ranked[0]["bert"]
    assert model.causal is False and model.through_v is None and not math.isnan(model.r2)
    assert all(ranked[0][name].causal for name in ("llama", "gpt"))
    loaded = ntps.load_model(models[2], bidirectional=True)
    representations = ntps.collect(loaded, task, pooling="mean")
    ids, mask = loaded.pad(loaded.tokenize(task.texts[:3]).ids)
    states = loaded.hidden_states(ids, mask)[-1].double()
    means = (states * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    assert representations.layer(2)[:3] == pytest.approx(means.numpy(), abs=1e-5)
    with pytest.raises(NtpsError, match=r"bert reads later tokens.*ntps\.rank"):
        ntps.score(representations)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_representations_without_next_token_moments_are_kept_whole(models, tmp_path, pooling, caplog):
    model, task = ntps.load_model(models[2], bidirectional=True), word_task(20, blank=(3,))
    first = ntps.collect(model, task, pooling=pooling, folder=tmp_path)
    caplog.set_level(logging.INFO)
    again = ntps.collect(model, task, pooling=pooling, folder=tmp_path)
    assert "using the representations" in caplog.text
    assert again.next_token is None and again.layers == first.layers == (0, 1, 2)
    assert np.array_equal(first.states, again.states)
    alone = ntps.collect(model, task, pooling=pooling, batch_size=1)
    assert alone.states == pytest.approx(first.states, abs=1e-5)  # padding is not read


def test_positions_of_roberta_begin_behind_the_padding(tmp_path):
    """Its table of 20 positions holds texts of 20 - padding_idx - 1 tokens; one more would be an index error."""
    from helpers.models import word_tokenizer
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=96, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=20, pad_token_id=3,
    )  # fmt: skip
    model = ntps.load_model(RobertaModel(config), tokenizer=word_tokenizer(), bidirectional=True)
    assert model.max_positions == 16
    long = Task.of("long", [" ".join(["film", "music"] * 30), "a film"], [0, 1], "ab")
    assert ntps.collect(model, long).lengths.tolist() == [16, 2]


# Order, groups


def saved(tmp_path, name, representations):
    path = tmp_path / name / passes.FILE
    representations = replace(
        representations, metadata={**representations.metadata, "n_parameters": 9, "n_truncated": 0}
    )
    representations.save(path)
    return _Entrant(
        model=name, name=name, path=path, n_layers=len(representations.layers),
        text_index=representations.text_index, text_group=representations.text_group,
    )  # fmt: skip


def column_ranking(tmp_path, named, **options):
    task = next(iter(named.values())).task
    entrants = [saved(tmp_path, name, representations) for name, representations in named.items()]
    reader = type("Reader", (), {"settings": replace(SETTINGS, **options), "processes": Processes(torch.device("cpu"))})
    return _rank_column(task, task.columns[0], entrants, {}, reader)


def with_noise(problem, scale, seed):
    rng = np.random.default_rng(seed)
    return [states + scale * rng.normal(size=states.shape) for states in problem.texts]


def standardized(values):
    return (values - values.mean()) / values.std()


def test_models_are_ranked_by_real_values_too(tmp_path):
    """The same order by R^2, the numbers of a score, and no number that only classes have."""
    problem = make_problem(seed=3, n=200, d=8, c=2, signal=0.0)
    values = np.stack([h.mean(0) for h in problem.texts]) @ np.random.default_rng(1).normal(size=8)
    stacks = {"far": with_noise(problem, 4.0, 2), "near": with_noise(problem, 0.2, 1)}
    named = {}
    for name, texts in stacks.items():
        made = representations_of(problem, texts)
        named[name] = replace(made, task=Task.of("real", made.task.texts, 40 + 7 * values))
    ranking = column_ranking(tmp_path, named, folds=5)
    assert ranking.groups == (("near",), ("far",))
    for name in stacks:
        scored = ntps.score(named[name], folds=5)
        assert ranking[name].r2 == pytest.approx(scored.choice.readout.r2, abs=1e-9)
        assert ranking[name].through_v.ntps == pytest.approx(scored[0].ntps)
        assert ranking[name].learning.r2 == pytest.approx(scored.learning.r2, abs=1e-9)
        assert ranking[name].probe is None and math.isnan(ranking[name].accuracy)
    assert [row.name for row in ranking.baselines] == ["TF-IDF", "the mean"]
    content = json.loads(ranking.to_json())
    assert (content["kind"], content["classes"], content["models"][0]["probe"]) == ("regression", None, None)
    text = " ".join(str(ranking).split())
    assert "near reads these values best" in text and "200 texts, real values, 2 models" in text
    assert (
        "A dash for accuracy: real values have no classes." in text and "ahead of TF-IDF with ridge regression" in text
    )
    assert "logistic" not in text and "frequencies" not in text
    assert ranking.to_dataframe().accuracy.isna().all()
    noise = np.random.default_rng(0).normal(size=200)
    one = {"near": replace(named["near"], task=Task.of("noise", named["near"].task.texts, noise))}
    assert "No model holds these values" in column_ranking(tmp_path, one, folds=5).sentences()[0]


def test_models_that_read_more_come_first_and_equal_ones_tie(tmp_path):
    problem = make_problem(seed=3, n=240, d=8, c=2, signal=1.2)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    named = {
        "noisy": representations_of(problem, with_noise(problem, 6.0, 1)),
        "clear": representations_of(problem),
        "rotated": representations_of(problem, [states @ rotation for states in problem.texts]),
        "nothing": representations_of(problem, with_noise(problem, 1e4, 2)),
    }
    found = column_ranking(tmp_path, named)
    assert set(found.groups[0]) == {"clear", "rotated"}
    assert [model.name for model in found.models][2:] == ["noisy", "nothing"]
    assert found.behind["noisy"].interval[0] > 0 and found.behind[found.models[1].name].tie
    assert found.to_dict()["best"] == found.best.name
    other = column_ranking(tmp_path, dict(reversed(named.items())))
    assert {frozenset(group) for group in other.groups} == {frozenset(group) for group in found.groups}
    assert other["noisy"].r2 == pytest.approx(found["noisy"].r2)


@pytest.mark.long
def test_noise_is_held_by_no_model(tmp_path):
    """Of 8 noise tasks at most one looks held: intervals of 95 % lie above 0 in one of 40."""
    held = 0
    for seed in range(8):
        problem = make_problem(seed=seed, n=60, d=6, c=2, signal=0.0)
        named = {
            name: representations_of(problem, with_noise(problem, 1.0, 99 * seed + i)) for i, name in enumerate("ab")
        }
        found = column_ranking(tmp_path, named)
        held += found.holds
        if not found.holds:
            assert found.sentences()[0].startswith("No model holds these labels")
            assert found.to_dict()["best"] is None
    assert held <= 1


# Texts in common


def test_texts_that_one_model_cannot_read_are_left_out_for_all(tmp_path):
    problem = make_problem(seed=1, n=90, d=6, c=2, signal=1.5)
    full = representations_of(problem)
    kept = np.array([index for index in range(90) if index not in (4, 30)])
    lengths = full.lengths.copy()
    lengths[[4, 30]] = 0
    partial = replace(full, states=full.states[:, kept], text_index=kept, text_group=np.arange(88), lengths=lengths)
    found = column_ranking(tmp_path, {"full": full, "partial": partial})
    assert (found.n_texts, found.n_left_out) == (88, 2)
    assert found["full"].r2 == pytest.approx(found["partial"].r2, abs=1e-12)
    assert "2 texts were left out" in " ".join(found.notes())


def test_texts_that_are_equal_to_one_model_share_a_fold_for_all():
    column = LabelColumn("label", np.array([0, 1] * 3), ("a", "b"))
    texts = np.arange(6), np.array([0, 2, 3, 4, 5])
    equal = np.array([0, 1, 0, 3, 4, 5]), np.array([0, 1, 1, 3, 4])
    one, two = (
        _Entrant(model=name, name=name, path=None, n_layers=2, text_index=index, text_group=group)
        for name, index, group in zip("ab", texts, equal, strict=True)
    )
    chosen, groups = _shared_texts(column, [one, two])
    assert chosen.tolist() == [0, 2, 3, 4, 5]  # the second finds no token in text 1
    assert groups[0] == groups[1] == groups[2]  # 0 and 2 by the first, 2 and 3 by the second
    assert len(set(groups[2:].tolist())) == 3


def test_two_label_columns_cost_one_pass_of_each_model(models, monkeypatch):
    calls = []
    monkeypatch.setattr(passes, "_run", lambda *a, run=passes._run, **k: calls.append(1) or run(*a, **k))
    words = word_task(60)
    second = LabelColumn("second", np.where(np.arange(60) < 5, -1, np.arange(60) % 2), ("x", "y"))
    both = replace(words, columns=(*words.columns, second))
    found = rank_columns(both, models[:2], settings=SETTINGS)
    assert len(calls) == 2
    assert [(each.label_column, each.n_texts, len(each.classes)) for each in found] == [
        ("label", 60, 3),
        ("second", 55, 2),
    ]
    assert rank(both, models[:1], labels="second", settings=SETTINGS).best.r2 == pytest.approx(found[1]["llama"].r2)


def test_a_pass_is_kept_and_serves_again(ranked, models, task, monkeypatch, tmp_path):
    first, folder = ranked
    monkeypatch.setattr(passes, "_run", None)  # a pass would be a TypeError, and so a row with a reason
    again = rank(task, models, settings=replace(SETTINGS, control=True), folder=folder)
    assert not again.failed
    assert [model.to_dict() for model in again.models] == [model.to_dict() for model in first.models]
    with pytest.raises(NtpsError, match=r"no model can be ranked: llama: TypeError"):
        rank(task, models[:1], settings=SETTINGS, folder=tmp_path)


def test_wrong_labels_are_found_among_the_hard_texts():
    task = ntps.load_task("miniworld/topic", n=300)
    values = task.labels.copy()
    swapped = [3, 77, 200]
    values[swapped] = (values[swapped] + 1) % task.n_classes
    mislabelled = Task.of("topic", task.texts, values, task.classes)
    found = rank(mislabelled, ["miniworld-small"], settings=replace(SETTINGS, layers="0,-1"))
    assert (found.best.n_layers, len(found.best.layers)) == (4, 2)
    assert {text.index for text in found.hard_texts[:3]} == set(swapped)
    for text in found.hard_texts[:3]:
        assert text.predicted == task.classes[task.labels[text.index]] and text.margin < 0
        assert task.texts[text.index].startswith(text.text[:100])
    assert "reads these labels with R²" in found.sentences()[0]  # one model: nothing is compared
    assert found.groups == (("miniworld-small",),) and found.behind == {}


def test_wrong_values_are_found_among_the_hard_texts(tmp_path):
    """Values that were made from the states, three of them exchanged for others; a model of noise is not asked."""
    problem = make_problem(seed=3, n=200, d=8, c=2, signal=0.0)
    true = 40 + 7 * standardized(np.stack([h.mean(0) for h in problem.texts]) @ np.random.default_rng(1).normal(size=8))
    given, wrong = true.copy(), {5: 20, 12: 20, 160: -20}
    for index, change in wrong.items():
        given[index] += change
    named = {}
    for name, scale in (("near", 0.3), ("also", 0.4), ("nothing", 1e4)):
        made = representations_of(problem, with_noise(problem, scale, len(name)))
        named[name] = replace(made, task=Task.of("real", made.task.texts, given))
    found = column_ranking(tmp_path, named, folds=5)
    assert not found["nothing"].choice.holds
    errors = np.stack([found[name].predicted[:, 0] - standardized(given) for name in ("near", "also")])
    errors /= [[np.sqrt(found[name].choice.readout.errors.mean())] for name in ("near", "also")]
    far = [index for index in range(200) if errors[:, index].min() > 2 or errors[:, index].max() < -2]
    assert (np.abs(errors) > 2).any(0).sum() > len(far) > 3
    assert [text.index for text in found.hard_texts] == sorted(far, key=lambda index: -np.abs(errors[:, index]).mean())
    assert {text.index for text in found.hard_texts[:3]} == wrong.keys()
    for text in found.hard_texts:
        assert text.margin == pytest.approx(-np.abs(errors[:, text.index]).mean())
        assert text.label == given[text.index]
        said = np.mean([found[name].predicted[text.index, 0] for name in ("near", "also")])
        assert text.predicted == pytest.approx(given.mean() + given.std() * said)


def test_wrong_labels_among_several_are_found_by_the_models_that_hold_them(tmp_path):
    """Two labels made from the states, and one of noise that no model holds; "one" cannot see the second label."""
    rng, n = np.random.default_rng(0), 200
    problem = make_problem(seed=1, n=n, d=8, c=2, signal=0.0)
    true = rng.integers(0, 2, (n, 3))
    means = rng.normal(size=(2, 8))
    given, wrong = true.copy(), {(7, 0), (30, 0), (90, 1)}
    for text, label in wrong:
        given[text, label] = 1 - given[text, label]
    named = {}
    for name, seen in (("both", [1, 1]), ("again", [1, 1]), ("one", [1, 0])):
        texts = [h + 2 * (row[:2] * seen) @ means for h, row in zip(problem.texts, true, strict=True)]
        made = representations_of(problem, texts)
        named[name] = replace(made, task=Task.of("several", made.task.texts, given, ("first", "second", "noise")))
    found = column_ranking(tmp_path, named, folds=5)
    assert found["one"].choice.holds and found["one"].labels[1].interval[0] < 0
    said = {(text.index, text.label): text for text in found.hard_texts}
    assert len(said) <= 20 and not any("noise" in label for _, label in said)
    for text, label in wrong:
        name, answers = ("first", "second")[label], ("no", "yes")
        row = said[text, f"{name}: {answers[given[text, label]]}"]
        assert row.predicted == f"{name}: {answers[true[text, label]]}"
        asked = ["both", "again"] if label else ["both", "again", "one"]
        share = [given[:, label].mean() + given[:, label].std() * found[m].predicted[text, label] for m in asked]
        assert row.margin == pytest.approx((2 * np.mean(share) - 1) * (2 * given[text, label] - 1)) and row.margin < 0


# Models that fail, bad input


def test_a_model_that_fails_is_named_with_the_reason(ranked):
    found = ranked[0]
    assert list(found.failed) == ["nothing-here"] and "cannot be loaded" in found.failed["nothing-here"]
    assert found.to_dict()["failed"][0]["name"] == "nothing-here"
    assert any("nothing-here" in note for note in found.notes())


@pytest.mark.long
@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), torch.cuda.OutOfMemoryError("no room"), KeyError("a fault"), NtpsError("a sentence.")],
)
def test_whatever_one_model_does_the_others_go_on(models, task, monkeypatch, error, caplog):
    def collect(model, *arguments, original=ranking.collect, **options):
        if model.name.endswith("gpt"):
            raise error
        return original(model, *arguments, **options)

    monkeypatch.setattr(ranking, "collect", collect)
    found = rank(task, models, settings=SETTINGS)
    assert set(found.failed) == {"gpt"} and str(error) in found.failed["gpt"]
    assert len(found.models) == 2
    assert ("Traceback" in caplog.text) == isinstance(error, KeyError)


def test_weights_beyond_the_memory_of_the_machine_are_not_read(models, task, monkeypatch):
    monkeypatch.setattr(ranking, "weight_bytes", lambda model: 10**18 if str(model).endswith("gpt") else 10)
    found = rank(task, models, settings=SETTINGS)
    assert "1,000,000,000.0 GB" in found.failed["gpt"]


def test_weights_that_are_loaded_need_no_more_memory(models, task, monkeypatch):
    loaded = ranking.load_model(models[0])
    monkeypatch.setattr(ranking, "free_memory", lambda: 10)
    found = rank(task, [loaded, models[1]], settings=SETTINGS)
    assert len(found.models) == 1 and "0.0 MB of memory are free" in next(iter(found.failed.values()))


def test_a_control_that_fails_is_left_out(models, task, monkeypatch, caplog):
    def load_model(name, *, original=ranking.load_model, **options):
        if options.get("random_weights"):
            raise NtpsError("no random weights.")
        return original(name, **options)

    monkeypatch.setattr(ranking, "load_model", load_model)
    rows = [f"{'film' if i % 2 else 'music'} {WORDS[i]} a story" for i in range(40)]
    held = Task.of("first word", rows, np.arange(40) % 2, "ab")
    found = rank(held, models[:1], settings=replace(SETTINGS, control=True))
    assert found.holds and found.fresh_weights is None
    assert "no random weights" in caplog.text


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "models is empty"), (["miniworld-small", "miniworld-small"], "miniworld-small is named twice")],
)
def test_models_that_make_no_ranking_are_refused(task, names, words):
    with pytest.raises(NtpsError, match=words):
        rank(task, names)


@pytest.mark.parametrize("spelling", ["{}/", "{}/../llama", "{}/../link"])
def test_a_model_under_two_spellings_is_refused(spelling, models, task, tmp_path):
    shutil.copytree(models[0], tmp_path / "llama")
    (tmp_path / "link").symlink_to(tmp_path / "llama")
    names = [str(tmp_path / "llama"), spelling.format(tmp_path / "llama")]
    with pytest.raises(NtpsError, match="is named twice"):
        rank(task, names, settings=SETTINGS)


def test_models_whose_paths_end_alike_are_all_ranked(models, task, tmp_path):
    below = Path(*"12345678")
    paths = [shutil.copytree(source, tmp_path / root / below) for source, root in zip(models, "ab", strict=False)]
    found = rank(task, paths, settings=SETTINGS)
    assert sorted(model.name for model in found.models) == ["1/2/3/4/5/6/7/8", "1/2/3/4/5/6/7/8 (2)"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"folds": 0}, "folds"),
        ({"folds": 1}, "folds"),
        ({"k_v": 0}, "k_v"),
        ({"seed": -1}, "seed"),
        ({"max_length": 1}, "max_length"),
        ({"dtype": "float8"}, "dtype"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(NtpsError, match=words):
        RankSettings(**options)


def test_labels_that_tell_nothing_apart_are_refused_before_any_model_is_read(monkeypatch):
    monkeypatch.setattr(ranking, "load_model", None)
    constant = Task.of("constant", ["a film", "a story"], [0, 0], ("a", "b"))
    with pytest.raises(NtpsError, match="all labels in 'label' are the same"):
        rank(constant, ["miniworld-small"])
    repeated = Task.of("repeated", ["a film"] * 4 + ["a story"] * 4, [0] * 4 + [1] * 4, ("a", "b"))
    with pytest.raises(NtpsError, match="none can be held out"):
        rank(repeated, ["miniworld-small"])
    with pytest.raises(NtpsError, match="folds is 3"):
        rank(repeated, ["miniworld-small"], settings=SETTINGS)
    single = Task.of("single", ["a film", "a story"], [0, 1], ("a", "b"))
    with pytest.raises(NtpsError, match="none can be held out"):
        rank(single, ["miniworld-small"])


def test_no_pass_is_left_behind_where_none_was_asked_for(models, task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert rank(task, models[0], settings=SETTINGS).best.name == "llama"  # one model needs no list
    assert list(tmp_path.iterdir()) == []


# Words


def test_the_text_fits_a_terminal_and_the_json_is_strict(ranked):
    for found in (ranked[0], make_ranking(), make_ranking({f"{'long-' * 12}{i}": 0.5 for i in range(9)})):
        assert max(map(len, str(found).splitlines())) <= 80
        json.dumps(found.to_dict(), allow_nan=False)
        frame = found.to_dataframe()
        assert frame.model.tolist() == [model.name for model in found.models]
        assert "<script>" not in found._repr_html_()


SENTENCES = [
    ({"a": 0.70, "b": 0.69, "c": 0.40}, 0.2, ["a and b cannot be told apart on 400 texts", "c is", "points behind"]),
    ({"a": 0.80, "b": 0.40}, 0.2, ["a reads these labels best: R² 0.80", "b is", "a is", "ahead of TF-IDF"]),
    (
        {"a": 0.40},
        0.8,
        ["a reads these labels with R² 0.40", "TF-IDF with logistic regression is", "count words instead"],
    ),
    ({"bert": 0.8}, 0.2, ["There is no share through V for bert"]),
]


@pytest.mark.parametrize(("r2", "tfidf", "words"), SENTENCES)
def test_sentences_say_what_the_numbers_say(r2, tfidf, words):
    found = make_ranking(r2, tfidf=tfidf, n=400)
    said = " ".join(found.sentences())
    assert all(word in said for word in words), said


def test_sentences_of_words_that_do_the_work():
    """The probe and TF-IDF with errors that are nearly the same, text by text."""
    found = make_ranking({"a": 0.6, "b": 0.3}, n=400)
    probe = found.best.probe.readout
    near = replace(found.baselines[0], readout=replace(probe, errors=probe.errors * 1.001))
    said = " ".join(replace(found, baselines=(near, *found.baselines[1:])).sentences())
    assert "the words alone do most of the work" in said or "the words do the work" in said
    unsure = make_ranking({"a": 0.6}, tfidf=0.6, n=40)
    low, high = compare(unsure.best.probe.readout, unsure.baselines[0].readout).interval
    said = " ".join(unsure.sentences())
    assert f"cannot be told from a on these texts ({100 * high:.0f} points behind to {-100 * low:.0f} ahead)" in said
    assert "a would read about R² 0.57, a change of +9 to +13 points" in said
    assert "were cut: 3 for a; TF-IDF read them whole." in " ".join(unsure.notes())
    flat = replace(unsure.best, learning=replace(unsure.best.learning, gain_interval=(-0.004, 0.004)))
    assert "a change of less than a point." in " ".join(replace(unsure, models=(flat,)).sentences())


def test_sentences_where_no_model_holds_the_labels():
    """Words may hold them: more than every model, or not to be told from the best one."""
    nothing = make_ranking({"a": 0.001}, tfidf=0.9, n=40)
    said = " ".join(nothing.sentences())
    assert "the best readout (a) is not clearly better than the label frequencies (R² 0.00 [" in said
    assert "TF-IDF with logistic regression is (R² 0.90 [" in said and "the words say what no model's states do" in said
    best = nothing.best.choice.readout
    words = replace(nothing.baselines[0], readout=replace(best, errors=best.errors[::-1]), r2=0.1, interval=(0.01, 0.2))
    said = " ".join(replace(nothing, baselines=(words,)).sentences())
    assert "TF-IDF with logistic regression is (R² 0.10 [0.01, 0.20])" in said
    assert "though it cannot be told from a on these texts." in said


def test_only_classes_of_the_texts_judged_are_counted_and_rare_ones_are_named():
    found = replace(make_ranking(), classes=("a", "b", "c"), class_sizes=(37, 0, 3))
    assert found.counts == "40 texts, 2 of 3 classes, 3 models"
    assert found.to_dict()["class_sizes"] == [37, 0, 3]
    notes = " ".join(found.notes())
    assert "Fewer texts than folds: 'c' (3);" in notes and "With fewer than 200 texts" in notes


def test_slow_passes_of_large_models_fit_a_terminal():
    found = make_ranking({"a-model-whose-name-is-long-indeed": 0.5, "another": 0.4})
    slow = [
        replace(model, seconds=12345.6, memory_bytes=123 * 10**9, choice=replace(model.choice, tied=(0, 4, 6, 8)))
        for model in found.models
    ]
    text = replace(found, models=tuple(slow)).to_text()
    assert max(map(len, text.splitlines())) <= 80 and "  12346  123.0" in text


def test_many_layers_that_tie_leave_the_names_their_room():
    found = make_ranking({"a-model-of-a-name": 0.5, "another": 0.4})
    tied = replace(found.best, choice=replace(found.best.choice, tied=(0, 4, 6, 8, 10, 12, 14)))
    text = replace(found, models=(tied, *found.models[1:])).to_text()
    assert "2 (7 tie)" in text and "a-model-of-a-name " in text and "label frequencies" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.03, 0.06, "3 to 6 points"),
        (0.001, 0.02, "up to 2 points"),
        (0.02, 0.021, "about 2 points"),
        (0.009, 0.011, "about 1 point"),
        (0.0, 0.004, "less than 1 point"),
        (-0.02, 0.01, "up to 1 point"),
    ],
)
def test_differences_in_points(low, high, words):
    assert points(low, high) == words


@pytest.mark.parametrize(
    ("numbers", "words"), [((), ""), ((3,), "3"), ((4, 3), "3, 4"), ((7, 1, 5, 6), "1, 5-7"), (range(4), "0-3")]
)
def test_runs_of_layers(numbers, words):
    assert ranges(numbers) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(12, "12"), (870_000, "870K"), (1_234_567, "1.2M"), (134_515_008, "135M"), (7_200_000_000, "7.2B")],
)
def test_numbers_of_parameters(number, words):
    assert short_count(number) == words


# Processes

SCRIPT = """
import os, sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from helpers.problems import order_task
from ntps.models import processes
from ntps.models.states import StateReader
from ntps.study import RankSettings, rank, ranking
processes._LONGEST_WAIT = timedelta(minutes=2)  # a process that is waited for in vain fails the test
models, number, alone, judged, unread = {models!r}, os.environ.get("RANK", "alone"), "RANK" not in os.environ, [], []

def size(model, plain=ranking._size):
    if number == "1" and model.endswith("unknown"):
        raise RuntimeError("no such folder here")
    return plain(model)

def load(model, plain=ranking.load_model, **options):
    if number == "1" and model.endswith("unreadable"):
        raise MemoryError("too large here")
    loaded = plain(model, **options)
    unread.extend([loaded.model] if model.endswith("unread") else [])
    return loaded

def read(reader, *batch, plain=StateReader.read):
    if number == "0" and any(reader.network is model for model in unread):
        raise RuntimeError("no batch here")
    return plain(reader, *batch)

def judge(entrant, *rest, plain=ranking._judge):
    judged.append(entrant.name)
    return plain(entrant, *rest)

ranking._size, ranking.load_model, StateReader.read, ranking._judge = size, load, read, judge
settings = RankSettings(folds=3, dtype="float64")
made = rank(order_task(72), models[:3] if alone else models, settings=settings, batch_size={batch_size},
            folder=Path({out!r}, "passes", number), progress=False)
Path({out!r}, f"{{number}}.json").write_text(made.to_json())
Path({out!r}, f"{{number}}.txt").write_text("\\n".join(judged))
"""


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [16, 100])
def test_two_processes_rank_as_one(models, tmp_path, forks, batch_size):
    """Their shares are uneven, or one has none; a model that fails in either of them is a row for both."""
    failing = [shutil.copytree(models[0], tmp_path / name) for name in ("unknown", "unreadable", "unread")]
    program = SCRIPT.format(
        tests=str(Path(__file__).parents[1]), models=[*models, *map(str, failing)], out=str(tmp_path),
        batch_size=batch_size,
    )  # fmt: skip
    for several in (torchrun(2), [{}]):
        for done in forks.run(program, *several):
            assert done.returncode == 0, done.stderr[-3000:]

    def result(name):
        content = json.loads((tmp_path / f"{name}.json").read_text(), parse_float=lambda text: round(float(text), 6))
        for model in [*content["models"], content["fresh_weights"]]:
            del model["seconds"]
        return content, (tmp_path / f"{name}.txt").read_text().splitlines()

    (alone, judged), (first, by_first), (second, by_second) = map(result, ("alone", "0", "1"))
    assert {row["name"]: row["reason"] for row in first["failed"]} == {
        "unknown": "RuntimeError: no such folder here",
        "unreadable": "MemoryError: too large here",
        "unread": "RuntimeError: no batch here",
    }
    assert alone["failed"] == []
    assert first == second == alone | {"failed": first["failed"]}
    assert (by_first, by_second) == (judged, []) and len(judged) == 4
    kept = {number: sorted(path.name[:4] for path in (tmp_path / "passes" / number).glob("*")) for number in "01"}
    assert kept == {"0": ["bert", "gpt-", "gpt-", "llam"], "1": []}
