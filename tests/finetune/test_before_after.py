"""Before and after: what is compared is the same, what is reported is what an independent computation gives."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import save_tiny
from helpers.problems import order_task

import ntps
import ntps.finetune.parts
from ntps.errors import NtpsError
from ntps.finetune.before_after import before_and_after, fine_tune_gain, load_for_training, repeat
from ntps.finetune.look import look_at_training
from ntps.finetune.loop import Trainer
from ntps.finetune.parts import split_task
from ntps.finetune.settings import TrainSettings
from ntps.models.load import load_model
from ntps.models.next_token import next_token_loss
from ntps.tasks import LabelColumn, Task, load_task

pytestmark = pytest.mark.slow

FAST = TrainSettings(steps=20, rank=8, batch_size=16, evaluate_every=10, learning_rate=5e-3, margin=0)
OPTIONS = {"settings": FAST, "folds": 3, "progress": False}
QUICK = {**OPTIONS, "analyses": ()}


@pytest.fixture(scope="module")
def task():
    return order_task(160)


@pytest.fixture(scope="module")
def compared(one_thread, tiny_llama, task, tmp_path_factory):
    """The result of a run given by name, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("tuned")
    return before_and_after(str(tiny_llama), task, output=folder, **OPTIONS), folder


@pytest.fixture(scope="module")
def with_head(tiny_llama):
    return load_model(str(tiny_llama), head=True)


def leaves(value, place=""):
    """Every number and word of a JSON value with its place."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if parts is None:
        yield place, value
        return
    for key, part in parts:
        yield from leaves(part, f"{place}/{key}")


class TestBeforeAndAfter:
    def test_an_encoder_is_refused_before_training(self, task, tmp_path, monkeypatch):
        monkeypatch.setattr(Trainer, "run", None)
        encoder = load_model(save_tiny(tmp_path / "bert", "bert"), bidirectional=True)
        for run in (before_and_after, look_at_training):
            with pytest.raises(NtpsError, match=r"bert reads later tokens; .* a causal one is needed"):
                run(encoder, task, settings=FAST, output=tmp_path / "tuned")
        assert not (tmp_path / "tuned").exists()

    def test_texts_are_split_once_and_stratified(self, task):
        parts = split_task(task, seed=3)
        assert [len(part) for part in parts] == [96, 24, 40]
        assert sorted(text for part in parts for text in part.texts) == sorted(task.texts)
        assert all(part.majority_rate == 0.5 for part in parts)

    def test_test_texts_of_their_own(self, tiny_llama, task):
        rest, own = task.split(0.3, seed=5)
        parts = split_task(rest, own, seed=3)
        assert parts[2] is own and sorted(parts[0].texts + parts[1].texts) == sorted(rest.texts)
        settings = TrainSettings.recipe("paper", steps=2, rank=4, dtype="float32")
        options = {**QUICK, "settings": settings, "layers": [-1], "convention": "official", "fraction": 0.5}
        result = before_and_after(str(tiny_llama), rest, test=own, **options)
        assert result.n_test == len(own) and result.best_step == 2
        for side in (result.before, result.after):
            layer = side.score.layers[0]
            assert layer.ntps == layer.curve["ntps"][9] and len(layer.curve["ntps"]) == 19
        renamed = ntps.load_task(texts=list(own.texts), labels=["x" if y else "y" for y in own.labels], name="other")
        with pytest.raises(NtpsError, match="different classes"):
            split_task(rest, renamed)

    def test_before_is_the_frozen_probe_and_after_is_the_saved_adapter(self, compared, tiny_llama, task):
        from peft import PeftModel
        from safetensors.torch import load_file
        from sklearn.linear_model import LogisticRegression
        from transformers import AutoModel

        from ntps.scoring.probes import CS, standardize

        result, folder = compared
        train, _, test = split_task(task)
        model = load_model(str(tiny_llama))
        x, held = (ntps.collect(model, part, progress=False).states[-1] for part in (train, test))
        x, held = standardize(x, held)
        scores = [LogisticRegression(C=c, max_iter=1000).fit(x, train.labels).score(held, test.labels) for c in CS]
        assert min(abs(score - result.before.accuracy) for score in scores) < 1e-9
        assert result.before.accuracy_with_validation == pytest.approx(result.before.accuracy, abs=0.2)

        network = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_llama), folder).eval()
        head = load_file(folder / "head.safetensors")
        with torch.no_grad():
            rows = [
                network(input_ids=torch.tensor([r])).last_hidden_state[0].mean(0)
                for r in model.tokenize(test.texts).ids
            ]
        guess = (torch.stack(rows) @ head["weight"].T + head["bias"]).argmax(1).numpy()
        assert result.after.accuracy == pytest.approx((guess == test.labels).mean())
        assert result.gain == result.after.accuracy - result.before.accuracy

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ({}, "the probe itself was kept"),
            ({"method": "probe"}, "the probe itself was kept"),
            ({"head": "random"}, "the untrained random head was kept"),
            ({"method": "scratch"}, "the untrained random weights were kept"),
            ({"method": "scratch", "head": "random"}, "the untrained random weights were kept"),
        ],
    )
    def test_it_says_what_was_kept_where_training_brought_nothing(self, compared, options, kept):
        settings = replace(FAST, **options).to_dict()
        assert f"standard errors, so {kept}." in replace(compared[0], best_step=0, settings=settings).sentence()

    def test_a_start_that_was_kept_says_what_a_margin_of_0_would_have_kept(self, compared):
        def told(*losses):
            looks = [{"step": 10 * i, "loss": 1.0, "validation_loss": loss, "validation_accuracy": 0.5 + 0.1 * i}
                     for i, loss in enumerate(losses)]  # fmt: skip
            return replace(compared[0], best_step=0, curve=looks).sentence()

        kept = "A margin of 0 would have kept step 10, with 60.0 % of the validation texts right instead of 50.0 %."
        assert kept in told(0.7, 0.6, 0.65)
        assert "A margin of 0" not in told(0.7, 0.8, 0.7)

    def test_scores_are_those_of_the_test_texts(self, compared, tiny_llama, task):
        test = split_task(task)[2]
        scored = ntps.score(ntps.collect(load_model(str(tiny_llama)), test, progress=False), folds=3)
        rows, expected = (result.to_dict()["layers"] for result in (compared[0].before.score, scored))
        assert len(rows) == 4
        for row, other in zip(rows, expected, strict=True):
            for name in ("ntps", "explained", "explained_heldout", "ceiling_heldout", "retained"):
                assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-8), name
        after = compared[0].to_dict()["after"]["layers"]
        assert after[0]["ntps"] == pytest.approx(rows[0]["ntps"], rel=1e-5)  # the embedding is not trained
        assert abs(after[-1]["ntps"] - rows[-1]["ntps"]) > 1e-4
        changes = compared[0].changes
        assert [c["layer"] for c in changes] == [0, 1, 2, 3]
        assert max(changes[0]["angles_v"]) < 1e-4
        assert max(changes[-1]["angles_v"]) > 0.01
        assert changes[-1]["explained"]["before"] == pytest.approx(rows[-1]["explained_heldout"], abs=1e-6)

    def test_next_token_loss_is_that_of_transformers(self, compared, tiny_llama, task):
        from peft import PeftModel
        from transformers import AutoModel, AutoModelForCausalLM

        test = split_task(task)[2]
        causal = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
        ids = load_model(str(tiny_llama)).tokenize(test.texts).ids

        def loss():
            with torch.no_grad():
                rows = [torch.tensor([row]) for row in ids]
                sums = [(causal(input_ids=r, labels=r).loss.item() * (r.numel() - 1), r.numel() - 1) for r in rows]
            return sum(s for s, _ in sums) / sum(n for _, n in sums)

        assert compared[0].before.next_token_loss == pytest.approx(loss(), rel=1e-5)
        adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_llama), compared[1])
        causal.model = adapted.merge_and_unload().eval()
        assert compared[0].after.next_token_loss == pytest.approx(loss(), rel=1e-5)
        assert compared[0].after.next_token_loss != compared[0].before.next_token_loss

    def test_json_and_text(self, compared):
        row = json.loads(compared[0].to_json())
        names = "schema_version kind model task n_train n_validation n_test before after gain settings curve changes"
        assert {*names.split(), "intruders", "provenance", "seed"} <= set(row)
        assert (row["schema_version"], row["kind"]) == (1, "ntps-lora")
        assert set(row["curve"][0]) == {"step", "loss", "validation_loss", "validation_accuracy"}
        assert {"accuracy", "balanced_accuracy", "macro_f1", "next_token_loss", "layers"} <= set(row["before"])
        assert row["settings"]["learning_rate"] == 5e-3
        assert row["provenance"]["versions"]["ntps"] == ntps.__version__
        assert len(row["intruders"]) == 21
        text = str(compared[0])
        assert max(map(len, text.splitlines())) <= 80
        assert f"{100 * compared[0].gain:+z.1f} points" in text
        assert f"{compared[0].after.accuracy:.3f}" in text
        assert "<table>" in compared[0]._repr_html_()
        for evaluation in compared[0].curve:
            numbers = (evaluation[name] for name in ("loss", "validation_loss", "validation_accuracy"))
            assert re.search(
                rf"^ *{evaluation['step']} +" + " +".join(f"{number:.3f}" for number in numbers), text, re.M
            )

    def test_a_long_curve_is_thinned_in_tables_alone(self, compared):
        row = compared[0].curve[0]
        long = replace(compared[0], curve=tuple({**row, "step": 25 * step} for step in range(201)), best_step=75)
        table = str(long).partition("validation accuracy\n")[2].partition("\n\n")[0]
        shown = [int(line.split()[0]) for line in table.splitlines()]
        assert shown[0] == 0 and 75 in shown and shown[-1] == 5000 and len(shown) == 13
        assert len(json.loads(long.to_json())["curve"]) == 201
        assert "font-weight:bold" in long._repr_html_()

    def test_a_loaded_model_without_a_head_has_no_next_token_loss_and_stays_as_it_is(self, tiny_llama, task, compared):
        model = load_model(str(tiny_llama))
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        result = before_and_after(model, task, layers=[-1], **QUICK)
        assert result.before.next_token_loss is None
        assert result.changes == result.intruders == ()
        assert [layer.layer for layer in result.after.score.layers] == [3]
        assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
        assert "next-token" not in result.to_text()
        assert result.curve == compared[0].curve
        assert result.after.accuracy == compared[0].after.accuracy

    def test_a_loaded_model_with_a_head_stays_as_it_is(self, with_head, tiny_llama, task):
        ids = with_head.tokenize(task.texts).ids
        before = next_token_loss(with_head, ids)
        assert before_and_after(with_head, task, layers=[-1], **QUICK).before.next_token_loss > 1
        assert next_token_loss(with_head, ids) == before
        assert next_token_loss(load_model(str(tiny_llama), head=True), ids) == pytest.approx(before)

    def test_epochs_are_said_as_the_steps_they_make(self, tiny_llama, task):
        settings = replace(FAST, method="probe", epochs=2)
        result = before_and_after(str(tiny_llama), task, layers=[-1], **QUICK | {"settings": settings})
        assert result.settings["steps"] == result.curve[-1]["step"] == 2 * 6, "96 texts in batches of 16"

    @pytest.mark.long
    @pytest.mark.parametrize("method", ["probe", "full", "scratch"])
    def test_other_methods(self, with_head, task, method):
        seed = 1 if method == "scratch" else 0  # random weights of seed 0 are those of the model itself
        options = {"seed": seed, "folds": 3, "progress": False, "layers": [-1]}
        settings = replace(FAST, method=method, steps=10, learning_rate=None)
        result = before_and_after(with_head, task, settings=settings, analyses=["intruders"], **options)
        assert len(result.intruders) == 21
        assert result.changes == ()
        unchanged = method == "probe" or result.best_step == 0
        if method != "scratch":
            assert (sum(row["relative_change"] for row in result.intruders) == 0) == unchanged
        else:
            assert max(row["relative_change"] for row in result.intruders) > 0.5
        lora = before_and_after(with_head, task, settings=replace(FAST, steps=1), analyses=[], **options)
        assert result.before.accuracy == lora.before.accuracy

    def test_blank_texts_are_left_out_and_counted(self, with_head, task):
        labels = [*np.array(task.classes)[task.labels], "first", "second"]
        more = load_task(texts=[*task.texts, "", "  "], labels=labels, name="order")
        short = {**QUICK, "settings": replace(FAST, steps=1), "layers": [-1]}
        result = before_and_after(with_head, more, **short)
        assert result.provenance["n_skipped"] == 2
        assert result.n_train + result.n_validation + result.n_test == 160

    def test_of_several_label_columns_the_first_counts(self, with_head, task):
        missing = np.where(np.arange(len(task)) < 40, -1, task.labels)
        columns = (LabelColumn("order", missing, task.classes), LabelColumn("all", task.labels, task.classes))
        several = Task(name="two columns", texts=task.texts, columns=columns)
        short = {**QUICK, "settings": replace(FAST, steps=1), "layers": [-1]}
        result = before_and_after(with_head, several, **short)
        assert result.n_train + result.n_validation + result.n_test == 120

    def test_labels_of_the_test_texts_change_nothing_but_the_judgement(self, with_head, task, compared, monkeypatch):
        """No peeking: with other labels on the test texts, training runs the same course."""
        real = ntps.finetune.parts.split_task

        def flipped(task, own, **options):
            train, validation, test = real(task, own, **options)
            other = Task.of(test.name, test.texts, 1 - test.labels, test.classes)
            return train, validation, other

        monkeypatch.setattr(ntps.finetune.parts, "split_task", flipped)
        other = before_and_after(with_head, task, layers=[-1], **QUICK)
        assert other.curve == compared[0].curve
        assert other.best_step == compared[0].best_step
        assert other.after.accuracy == pytest.approx(1 - compared[0].after.accuracy)

    def test_resume_at_the_end_gives_the_same_result(self, compared, tiny_llama, task):
        again = before_and_after(str(tiny_llama), task, output=compared[1], resume=True, **OPTIONS)
        first, second = (dict(leaves(result.to_dict())) for result in (compared[0], again))
        assert first.keys() == second.keys()
        for place, value in first.items():  # float64 products differ in the last digit with where memory lies
            same = isinstance(value, float) and second[place] == pytest.approx(value, rel=1e-8, abs=1e-10)
            assert same or second[place] == value, place

    def test_what_is_refused_before_training(self, with_head, task, monkeypatch):
        def never(*args, **options):
            raise AssertionError("trained")

        monkeypatch.setattr(ntps.finetune.before_after, "fine_tune", never)
        for options, said in (
            ({"folds": 1}, "folds is 1"),
            ({"folds": 100}, "folds is 100"),
            ({"layers": [9]}, "layer 9 is out of range"),
            ({"settings": replace(FAST, rank=99)}, "rank is 99, above the model's width; choose between 1 and 24"),
            ({"analyses": ["angles"]}, "analyses is 'angles'; choose one of: changes, intruders"),
        ):
            with pytest.raises(NtpsError, match=said):
                before_and_after(with_head, task, **{**OPTIONS, **options})
        with pytest.raises(TypeError, match="before_and_after"):
            before_and_after(with_head, task, layer=3)
        rare = load_task(texts=[*task.texts, "a cat", "a dog"], labels=["a"] * 80 + ["b"] * 80 + ["c"] * 2)
        with pytest.raises(NtpsError, match=r"class 'c' has no text in the (training|validation) part"):
            before_and_after(with_head, rare, **OPTIONS)
        few = load_task(texts=["good", "bad", "dull"], labels=["a", "b", "b"]).subset([0])
        with pytest.raises(NtpsError, match=r"1 labelled texts for 2 classes"):
            before_and_after(with_head, few, **OPTIONS)


@pytest.mark.long
class TestRepeat:
    def test_mean_interval_and_folders(self, with_head, task, compared, tmp_path):
        from scipy.stats import t

        both = repeat(with_head, task, seeds=2, output=tmp_path, layers=[-1], **QUICK)
        gains = [run.gain for run in both.runs]
        assert both.gain == pytest.approx(np.mean(gains))
        half = t.ppf(0.975, 1) * np.std(gains, ddof=1) / np.sqrt(2)
        assert both.gain_interval == pytest.approx((np.mean(gains) - half, np.mean(gains) + half))
        row = json.loads(both.to_json())
        assert row["gain"] == both.gain
        assert [run["seed"] for run in row["seeds"]] == [0, 1]
        assert row["before"]["accuracy"] == pytest.approx(np.mean([run.before.accuracy for run in both.runs]))
        assert max(map(len, str(both).splitlines())) <= 80
        assert (tmp_path / "seed-1" / "adapter_model.safetensors").is_file()
        assert both.runs[0].curve == compared[0].curve
        assert both.runs[1].curve != compared[0].curve
        assert "<table>" in both._repr_html_()

    def test_what_is_refused(self, with_head, task):
        for seeds in (0, [], [1, 1]):
            with pytest.raises(NtpsError, match="seeds is"):
                repeat(with_head, task, seeds=seeds, **OPTIONS)


class TestLoading:
    def test_a_checkpoint_without_a_head_is_loaded_without_one(self, tiny_llama, tmp_path):
        from transformers import AutoModel, AutoTokenizer

        AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
        assert load_for_training(str(tmp_path)).model.get_output_embeddings() is None
        assert load_for_training(str(tiny_llama)).model.get_output_embeddings() is not None

    def test_a_failure_is_reported_and_not_tried_again_without_a_head(self, tiny_llama, monkeypatch):
        calls = []

        def failing(*args, **options):
            calls.append(options["head"])
            raise NtpsError("the network is down.")

        monkeypatch.setattr(ntps.finetune.before_after, "load_model", failing)
        with pytest.raises(NtpsError, match="network is down"):
            load_for_training(str(tiny_llama))
        assert calls == [True]

    def test_options_of_a_loaded_model_are_refused(self, with_head):
        assert load_for_training(with_head) is with_head
        for options in ({"dtype": "bfloat16"}, {"revision": "main"}, {"device": "cpu"}, {"trust_remote_code": True}):
            with pytest.raises(NtpsError, match=next(iter(options))):
                load_for_training(with_head, **options)


def test_the_cheap_one_agrees(compared, with_head, task):
    gain = fine_tune_gain(with_head, task, FAST, seed=0, folds=3)
    result = compared[0]
    assert json.loads(json.dumps(gain)) == gain
    assert gain["gain"] == result.gain
    assert gain["standard_error"] == result.gain_standard_error
    assert gain["saved"] == max(0.0, result.curve[0]["validation_loss"] - result.curve[-1]["validation_loss"])
    assert gain["next_token_loss_after"] == pytest.approx(result.after.next_token_loss)
    assert list(gain["layers"]) == ["2", "3"]
    assert gain["layers"]["3"]["after"]["ntps"] == pytest.approx(result.after.score[3].ntps)
    assert gain["layers"]["2"]["before"]["ceiling_heldout"] == pytest.approx(result.before.score[2].ceiling_heldout)


def test_the_standard_error_is_paired(compared):
    """Of n test texts, a became right and b wrong: the variance of the mean difference, spelled out."""
    result, n = compared[0], compared[0].n_test
    error, gain = result.gain_standard_error, result.gain
    changed = (error**2 * (n - 1) + gain**2) * n  # = a + b
    assert changed == pytest.approx(round(changed), abs=1e-6)
    assert changed >= abs(gain) * n - 1e-6
