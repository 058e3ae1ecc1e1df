"""Fine-tuning: what is trained, what is kept, that a resumed run is the same run, and what is refused."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.finetune import FAST, curve
from helpers.problems import order_task

import ntps.finetune.adapters
import ntps.finetune.loop
import ntps.models.forward
from ntps._files import held_folder, load_tensors, save_tensors
from ntps.errors import NtpsError
from ntps.finetune import adapters
from ntps.finetune.adapters import linear_modules, target_names
from ntps.finetune.before_after import before_and_after
from ntps.finetune.head import fit_head
from ntps.finetune.loop import Trainer, clearly_lower, epoch_batches
from ntps.finetune.settings import RECIPES, TrainSettings
from ntps.finetune.state import Progress
from ntps.finetune.train import fine_tune
from ntps.models.load import load_model
from ntps.scoring.probes import CS, standardize
from ntps.tasks.load import load_task

pytestmark = pytest.mark.slow

GONE = object()
# What a state whose checksum fits may say all the same: the place in its header, and what stands there.
FORGED_HEADERS = [
    *((("progress",), value) for value in (None, [], 3, {}, "text")),
    *((("run",), value) for value in (None, [], {}, "text")),
    *((("scalars",), value) for value in (None, [], {"0": 3}, {"zero": {}}, {"0": {"step": "1"}}, {"0": {"step": -1}})),
    *((("scalars",), {"0": value}) for value in ({"step": 10**30}, {"exp_avg_sq": 1}, {"exp_avg_sq_row": None})),
    *((("progress", "step"), value) for value in (-4, 0, 3, 5, 6, 7, 10**30, 4.0, True, "4", None, GONE)),
    *((("progress", "micro_batch"), value) for value in (0, -1, 9, 1.5, None, GONE)),
    *((("progress", "best_step"), value) for value in (-1, 1, 6, 2.0, None)),
    *((("progress", "finished"), value) for value in (True, 1, "no", None)),
    *((("progress", "initial_losses"), value) for value in ([], [0.5], None, "text", ["a"], [[0.5]])),
    *((("progress", "initial_losses", 0), value) for value in (math.nan, -1.0, math.inf, None, 10**400, 99.0)),
    *((("progress", "losses"), value) for value in ([0.5], None, "text", [math.nan])),
    *((("progress", "curve"), value) for value in ([], None, "text", [3], [None], {})),
    *((("progress", "curve", 1), value) for value in (GONE, None, {}, [2, 0.5, 0.5, 0.5])),
    *((("progress", "curve", 1, "step"), value) for value in (-2, 0, 1, 4, "2", GONE)),
    *((("progress", "curve", 1, "loss"), value) for value in (math.nan, math.inf, -0.1, None, "low", 10**400, GONE)),
    *((("progress", "curve", 1, "validation_loss"), value) for value in (math.nan, -math.inf, -0.1, None, True)),
    *((("progress", "curve", 1, "validation_accuracy"), value) for value in (math.nan, -0.1, 1.1, None, [])),
    (("progress", "curve", 1, "unknown"), 1),
    (("progress", "unknown"), 1),
    *((("run", "rank"), value) for value in (2, None, "4", GONE)),
    *((("run", "steps"), value) for value in (-6, 60)),
]
FORGED_TENSORS = {
    "gone": lambda tensor: None,
    "shape": lambda tensor: tensor[..., :-1],
    "flat": lambda tensor: tensor.flatten()[None, None],
    "type": lambda tensor: tensor.double(),
    "whole numbers": lambda tensor: tensor.int(),
    "not a number": lambda tensor: tensor.index_put_((torch.zeros((), dtype=torch.long),), torch.tensor(math.nan)),
    "infinite": lambda tensor: tensor.fill_(math.inf),
}


class TestReadout:
    def test_it_is_the_probe_folded_back(self):
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        x = (rng.normal(size=(90, 6)) * [1, 100, 0.01, 1, 1, 0] + 5).astype(np.float32)
        y = (x[:, [0, 3]] - 5).argmax(1) + (x[:, 4] > 5.5)
        head = fit_head(x, y, 3)
        scaled, _ = standardize(x, x)
        guesses = [LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(scaled, y).predict_proba(scaled) for c in CS]
        mine = torch.softmax(head(torch.from_numpy(x)), 1).detach().numpy()
        assert min(np.abs(mine - guess).max() for guess in guesses) < 5e-3
        weight, bias = head.folded()
        torch.testing.assert_close(torch.from_numpy(x) @ weight.T + bias, head(torch.from_numpy(x)), rtol=0, atol=2e-3)
        assert (head.predict(x) == y).mean() > 0.7

    def test_two_classes_and_one_without_texts(self):
        x = np.concatenate([np.zeros((20, 2)), np.ones((20, 2))]) + np.random.default_rng(0).normal(size=(40, 2)) / 9
        head = fit_head(x, np.repeat([0, 2], 20), 3)
        assert head.predict(x).tolist() == [0] * 20 + [2] * 20


class TestTraining:
    def test_what_one_process_alone_uses_is_added_up_in_all(self, llama, parts):
        trainer, added = Trainer(llama, *parts, FAST), []
        trainer.parameters["expert"] = torch.nn.Parameter(torch.ones(2))  # no text of this process is sent to it
        trainer.processes.gather = lambda value: [value, (0.5, [True] * len(value[1]))]
        trainer.processes.add_up = added.extend
        own = trainer._accumulate([np.arange(4)])
        assert own > 0.5
        assert len(added) == len(trainer.parameters) and not trainer.parameters["expert"].grad.any()

    def test_step_0_is_the_frozen_probe_and_validation_never_gets_worse(self, llama, parts, lora):
        tuned = lora.tuned
        assert [row["step"] for row in tuned.curve] == [0, 2, 4, 6]
        ids = llama.tokenize(parts[1].texts).ids
        with torch.no_grad():
            states = [llama.hidden_states(*llama.pad([row]))[-1][0].mean(0) for row in ids]
        logits = tuned.initial_head(torch.stack(states))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(parts[1].labels.copy())).item()
        assert tuned.curve[0]["validation_loss"] == pytest.approx(loss, rel=1e-4)
        losses = [row["validation_loss"] for row in tuned.curve]
        assert tuned.best_step == tuned.curve[int(np.argmin(losses))]["step"]
        right = (tuned.predict(parts[1].texts) == parts[1].labels).mean()
        assert right == pytest.approx(tuned.curve[losses.index(min(losses))]["validation_accuracy"])

    @pytest.mark.long
    def test_a_margin_of_standard_errors_is_asked_of_what_replaces_the_start(self, llama, parts):
        chosen = {}
        for margin in (0, 1, 1000):
            settings = replace(FAST, steps=15, evaluate_every=5, margin=margin)
            trainer = Trainer(llama, *parts, settings)
            labels, losses = trainer.validation_labels, []
            for step in itertools.chain([0], trainer.run()):
                if step % 5 == 0:
                    states = ntps.models.forward.pooled_features(llama, trainer.network, trainer.validation_ids)
                    head = trainer.head if step else trainer.initial_head
                    losses.append(torch.nn.functional.cross_entropy(head(states), labels, reduction="none"))
            losses = torch.stack(losses).detach().double().numpy()
            saved = losses[0] - losses[1:]
            scores = saved.mean(1) / (saved.std(1, ddof=1) / np.sqrt(len(labels)))
            allowed = [0, *(5 * (index + 1) for index, score in enumerate(scores) if score > margin)]
            chosen[margin] = trainer.progress.best_step
            assert chosen[margin] == min(allowed, key=lambda step: losses[step // 5].mean())
        assert chosen[0] > 0
        assert chosen[1000] == 0

    @pytest.mark.long
    @pytest.mark.parametrize("n", [75, 150])
    @pytest.mark.parametrize("alike", [0.0, 0.7])
    def test_what_learns_nothing_is_rarely_kept(self, n, alike):
        """Four looks at texts whose loss has not changed on average, looks being more or less alike."""
        rng, runs = np.random.default_rng(0), 2000
        saved = np.sqrt(alike) * rng.normal(size=(runs, 1, n)) + np.sqrt(1 - alike) * rng.normal(size=(runs, 4, n))
        kept = {
            margin: np.mean([any(clearly_lower(look, margin) for look in looks) for looks in saved])
            for margin in (2.0, TrainSettings().margin)
        }
        assert kept[TrainSettings().margin] < 0.05 < kept[2.0]

    @pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
    def test_it_learns_what_the_frozen_probe_cannot(self, llama, optimizer):
        train, held = order_task(160).split(0.25)
        settings = replace(FAST, steps=30, rank=8, batch_size=16, evaluate_every=15, optimizer=optimizer, dropout=0.0)
        tuned = fine_tune(llama, train, held, settings=settings, progress=False)
        assert min(r["validation_loss"] for r in tuned.curve) < tuned.curve[0]["validation_loss"] - 0.05
        assert tuned.curve[-1]["loss"] < tuned.curve[1]["loss"]

    def test_noise_is_not_learned(self, llama):
        train, held = order_task(160, noise=True).split(0.25)
        test = order_task(400, seed=5, noise=True)
        tuned = fine_tune(llama, train, held, settings=replace(FAST, steps=20, evaluate_every=5), progress=False)
        assert abs((tuned.predict(test.texts) == test.labels).mean() - 0.5) < 0.1

    def test_the_model_and_the_global_generator_are_as_before(self, llama, parts):
        before = {name: value.clone() for name, value in llama.model.state_dict().items()}
        names = [name for name, _ in llama.model.named_modules()]
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        fine_tune(llama, *parts, settings=replace(FAST, method="full"), progress=False)
        assert torch.equal(torch.rand(3), expected)
        fine_tune(llama, *parts, settings=FAST, progress=False)
        assert names == [name for name, _ in llama.model.named_modules()]
        assert all(torch.equal(value, before[name]) for name, value in llama.model.state_dict().items())
        assert not llama.model.training

    def test_everything_depends_on_the_seed_alone(self, llama, parts, lora):
        torch.manual_seed(99)
        assert curve(lora.tuned) == curve(fine_tune(llama, *parts, settings=FAST, seed=0, progress=False))
        assert curve(lora.tuned)[1:] != curve(fine_tune(llama, *parts, settings=FAST, seed=2, progress=False))[1:]

    @pytest.mark.parametrize("method", ["lora", "probe", "full", "scratch"])
    def test_a_method_trains_what_it_says(self, llama, parts, method):
        settings = replace(FAST, method=method, steps=2)
        tuned = fine_tune(llama, *parts, settings=settings, progress=False)
        head = 2 * llama.width + 2
        own = sum(p.numel() for p in llama.model.parameters())
        if method == "lora":
            sizes = [m.weight.shape for m in linear_modules(llama.model).values()]
            assert tuned.n_trained == head + sum(4 * (a + b) for a, b in sizes)
        else:
            assert tuned.n_trained == head + (0 if method == "probe" else own)
        learning = {n for n, p in tuned.network.named_parameters() if p.requires_grad}
        every = {n for n, _ in tuned.network.named_parameters()}
        lora = {n for n in every if "lora_" in n}
        assert learning == {"lora": lora, "probe": set(), "full": every, "scratch": every}[method]
        assert len(tuned.curve) == 2

    def test_scratch_starts_at_random_weights(self, llama, parts):
        tuned = fine_tune(llama, *parts, settings=replace(FAST, method="scratch", steps=1), seed=4, progress=False)
        fresh = load_model(llama.model, tokenizer=llama.tokenizer, random_weights=True, seed=4)
        random = torch.nn.functional.cosine_similarity(
            tuned.network.embed_tokens.weight.flatten(), fresh.model.embed_tokens.weight.flatten(), dim=0
        )
        assert random > 0.98

    def test_patience_ends_training(self, llama):
        train, held = order_task(80, noise=True).split(0.25)
        settings = replace(FAST, steps=40, patience=2, learning_rate=3e-2)
        tuned = fine_tune(llama, train, held, settings=settings, progress=False)
        assert tuned.curve[-1]["step"] < 40
        assert tuned.curve[-1]["step"] - int(np.argmin([row["validation_loss"] for row in tuned.curve])) * 2 == 4

    def test_accumulation_is_a_larger_batch(self, llama, parts):
        """Without dropout, two batches of 27 a step are the epoch's 54 texts, as one batch of 54 is."""
        settings = replace(FAST, dropout=0.0, steps=3, evaluate_every=1)
        one = fine_tune(llama, *parts, settings=replace(settings, batch_size=54), progress=False)
        two = fine_tune(llama, *parts, settings=replace(settings, batch_size=27, accumulation=2), progress=False)
        np.testing.assert_allclose(np.array(curve(one), float), np.array(curve(two), float), rtol=1e-4)

    def test_gpt2_whose_linear_maps_are_transposed(self, tiny_gpt2, parts):
        model = load_model(str(tiny_gpt2))
        tuned = fine_tune(model, *parts, settings=FAST, progress=False)
        assert any("c_attn" in n and "lora_A" in n for n in dict(tuned.network.named_parameters()))
        before = tuned.features(parts[1].texts)
        merged = tuned.merge()
        assert np.abs(tuned.features(parts[1].texts) - before).max() < 1e-4
        assert {type(m).__name__ for m in linear_modules(merged.model).values()} == {"Conv1D"}

    def test_bfloat16_weights_stay_and_adapters_are_float32(self, tiny_llama, parts):
        model = load_model(str(tiny_llama), dtype="bfloat16")
        tuned = fine_tune(model, *parts, settings=FAST, progress=False)
        kinds = {("lora_" in n, str(p.dtype)) for n, p in tuned.network.named_parameters()}
        assert kinds == {(True, "torch.float32"), (False, "torch.bfloat16")}
        full = fine_tune(model, *parts, settings=replace(FAST, method="full"), progress=False)
        assert {p.dtype for p in full.network.parameters()} == {torch.float32}

    def test_out_of_memory_halves_the_batch_and_changes_nothing_else(self, llama, parts, monkeypatch):
        settings = replace(FAST, dropout=0.0)
        expected = curve(fine_tune(llama, *parts, settings=settings, progress=False))
        pool, seen = ntps.models.forward.pool, []

        def small_device(model, network, ids):
            if len(ids) > 3:
                raise torch.cuda.OutOfMemoryError("planted")
            seen.append(len(ids))
            return pool(model, network, ids)

        for module in (ntps.finetune.loop, ntps.models.forward):
            monkeypatch.setattr(module, "pool", small_device)
        got = curve(fine_tune(llama, *parts, settings=settings, progress=False))
        assert max(seen) <= 3
        np.testing.assert_allclose(np.array(got, float), np.array(expected, float), rtol=1e-4)

        def no_device(model, network, ids):
            raise torch.cuda.OutOfMemoryError("planted")

        for module in (ntps.finetune.loop, ntps.models.forward):
            monkeypatch.setattr(module, "pool", no_device)
        with pytest.raises(NtpsError, match=r"too little memory .* max_length"):
            fine_tune(llama, *parts, settings=settings, progress=False)


def test_memory_that_runs_out_in_the_backward_pass_leaves_no_gradient_behind(llama, parts, monkeypatch):
    """A failed attempt must not count: the sum of gradients is that of a run with enough memory."""
    settings = replace(FAST, dropout=0.0, batch_size=32)

    def gradients():
        trainer = Trainer(llama, *parts, settings)
        loss = trainer._accumulate([np.arange(32)])
        return loss, trainer.progress.micro_batch, {name: p.grad for name, p in trainer.parameters.items()}

    loss, size, expected = gradients()
    assert size == 32
    real, calls = torch.autograd.grad, []

    def failing(outputs, inputs, **options):
        computed = real(outputs, inputs, **options)
        calls.append(outputs)
        if len(calls) in (1, 3):
            raise torch.cuda.OutOfMemoryError("planted")
        return computed

    monkeypatch.setattr(torch.autograd, "grad", failing)
    other_loss, size, halved = gradients()
    assert size == 16
    assert len(calls) == 5
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(halved[name], gradient, rtol=1e-3, atol=1e-6)


def test_batches_hold_every_text_once_and_similar_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 60, 101)
    batches = epoch_batches(lengths, 8, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(101))
    assert {len(batch) for batch in batches} <= {7, 8}
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 0.5 * np.mean([np.ptp(part) for part in np.array_split(lengths, len(batches))])
    again, other = epoch_batches(lengths, 8, 0, 0), epoch_batches(lengths, 8, 0, 1)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(batches, other, strict=True))


def test_the_learning_rate_rises_and_falls_to_zero():
    settings = TrainSettings(steps=100, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert int(np.argmax(rates)) in (5, 6)
    assert max(rates) == 1.0
    assert 0 < rates[-1] < 1e-3
    assert (np.diff(rates[6:]) < 0).all()


def test_a_wider_model_takes_smaller_steps_unless_told():
    settings, probe = TrainSettings(rank=8), TrainSettings(method="probe")
    assert settings.for_width(24).learning_rate == settings.for_width(128).learning_rate
    assert settings.for_width(1024).learning_rate == pytest.approx(settings.step_size / 8)
    assert probe.for_width(1024).learning_rate == probe.for_width(2).learning_rate == probe.step_size
    assert TrainSettings(learning_rate=0.5).for_width(1024).learning_rate == 0.5


@pytest.mark.long
class TestResume:
    @pytest.mark.parametrize("method, optimizer", [("lora", "adamw"), ("full", "adafactor"), ("probe", "adamw")])
    def test_a_run_that_is_cut_off_continues_exactly(self, llama, parts, lora, tmp_path, method, optimizer):
        settings = replace(FAST, method=method, optimizer=optimizer)
        whole = lora.tuned if method == "lora" else fine_tune(llama, *parts, settings=settings, progress=False)
        for step in Trainer(llama, *parts, settings, folder=tmp_path).run():
            if step == 5:  # the last state is that of the evaluation at step 4
                break
        assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
        torch.manual_seed(1234)
        new = Trainer(llama, *parts, settings, folder=tmp_path / "new", resume=True)
        assert list(new.run()) == [1, 2, 3, 4, 5, 6]
        assert Trainer(llama, *parts, settings, folder=tmp_path, resume=True).progress.step == 4
        tuned = fine_tune(llama, *parts, settings=settings, output=tmp_path, resume=True, progress=False)
        assert curve(tuned) == curve(whole)
        assert np.array_equal(tuned.features(parts[1].texts), whole.features(parts[1].texts))
        assert torch.equal(tuned.head.weight, whole.head.weight)
        assert list(Trainer(llama, *parts, settings, folder=tmp_path, resume=True).run()) == []
        again = fine_tune(llama, *parts, settings=settings, output=tmp_path, resume=True, progress=False)
        assert curve(again) == curve(whole)
        assert np.array_equal(again.features(parts[1].texts), whole.features(parts[1].texts))

    @pytest.mark.parametrize("stop", [1, 3, 4, 6])
    def test_a_run_that_stopped_early_goes_on_as_if_it_had_not(self, llama, parts, lora, tmp_path, stop):
        first = Trainer(llama, *parts, FAST, folder=tmp_path)
        assert list(first.run(stop=stop)) == list(range(1, stop + 1))
        tuned = fine_tune(llama, *parts, settings=FAST, output=tmp_path, resume=True, progress=False)
        assert curve(tuned) == curve(lora.tuned)
        assert np.array_equal(tuned.features(parts[1].texts), lora.tuned.features(parts[1].texts))

    @pytest.mark.long
    @pytest.mark.slow  # a process of its own imports everything once more
    def test_a_process_that_is_killed_leaves_a_state_to_continue_from(self, tiny_llama, llama, parts, lora, tmp_path):
        script = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]
import torch
torch.set_num_threads(1)
from helpers.finetune import FAST
from helpers.problems import order_task
from ntps.finetune.loop import Trainer
from ntps.models.load import load_model
model = load_model({str(tiny_llama)!r})
for step in Trainer(model, *order_task().split(0.25), FAST, folder=Path({str(tmp_path)!r})).run():
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
        tuned = fine_tune(llama, *parts, settings=FAST, output=tmp_path, resume=True, progress=False)
        assert curve(tuned) == curve(lora.tuned)
        assert np.array_equal(tuned.features(parts[1].texts), lora.tuned.features(parts[1].texts))

    def test_a_state_of_another_run_is_refused(self, llama, tiny_gpt2, parts, lora, tmp_path):
        shutil.copy(lora.folder / "state.safetensors", tmp_path)
        go = {"output": tmp_path, "resume": True, "progress": False}
        with pytest.raises(NtpsError, match="another model"):
            fine_tune(load_model(str(tiny_gpt2)), *parts, settings=FAST, **go)
        with pytest.raises(NtpsError, match="other training texts"):
            fine_tune(llama, *order_task(72, seed=1).split(0.25), settings=FAST, **go)
        with pytest.raises(NtpsError, match=r"rank 4, not 2"):
            fine_tune(llama, *parts, settings=replace(FAST, rank=2), **go)
        with pytest.raises(NtpsError, match=r"seed 0, not 1"):
            fine_tune(llama, *parts, settings=FAST, seed=1, **go)
        state = tmp_path / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-40])
        with pytest.raises(NtpsError, match=r"damaged.* without resume"):
            fine_tune(llama, *parts, settings=FAST, **go)
        save_tensors(state, {}, {"kind": "ntps-other"})
        with pytest.raises(NtpsError, match="ntps-other"):
            fine_tune(llama, *parts, settings=FAST, **go)
        with pytest.raises(NtpsError, match="output"):
            fine_tune(llama, *parts, settings=FAST, resume=True, progress=False)


@pytest.fixture(scope="module", params=["adamw", "adafactor"])
def cut_off(request, llama, parts, tmp_path_factory):
    """A fresh run, and tensors and header of the state of one that was cut off after step 4."""
    folder = tmp_path_factory.mktemp("cut-off")
    settings = replace(FAST, optimizer=request.param)
    for step in Trainer(llama, *parts, settings, folder=folder).run():
        if step == 5:
            break
    return Trainer(llama, *parts, settings), *load_tensors(folder / "state.safetensors", "ntps-train-state")


@pytest.mark.long
class TestForgedState:
    """A state whose checksum fits, but that no run has written, is refused before anything is taken from it."""

    @pytest.mark.parametrize("place, value", FORGED_HEADERS)
    def test_a_header(self, cut_off, tmp_path, place, value):
        trainer, tensors, header = cut_off
        header = json.loads(json.dumps(header))
        *on_the_way, last = place
        inner = header
        for key in on_the_way:
            inner = inner[key]
        if value is GONE:
            del inner[last]
        else:
            inner[last] = value
        self.refused(trainer, tensors, header, tmp_path)

    @pytest.mark.parametrize("group", ["best|", "now|", "optimizer|"])
    @pytest.mark.parametrize("change", FORGED_TENSORS)
    def test_a_tensor(self, cut_off, tmp_path, group, change):
        trainer, tensors, header = cut_off
        name = max((name for name in tensors if name.startswith(group)), key=lambda name: tensors[name].numel())
        forged = {**tensors, name: FORGED_TENSORS[change](tensors[name].clone())}
        self.refused(trainer, {name: value for name, value in forged.items() if value is not None}, header, tmp_path)

    @pytest.mark.parametrize("name", ["now|network.no", "optimizer|0|extra", "optimizer|99|step", "spare", "x|y|z"])
    def test_a_tensor_of_no_run(self, cut_off, tmp_path, name):
        trainer, tensors, header = cut_off
        self.refused(trainer, {**tensors, name: torch.ones(3)}, header, tmp_path)

    def test_negative_squares(self, cut_off, tmp_path):
        trainer, tensors, header = cut_off
        name = next(name for name in tensors if "_sq" in name)
        self.refused(trainer, {**tensors, name: -1 - tensors[name]}, header, tmp_path)

    def test_a_finished_one_that_goes_on(self, cut_off, tmp_path):
        trainer, tensors, header = cut_off
        progress = header["progress"]
        last = {**progress["curve"][-1], "step": 6}
        progress = {**progress, "step": 6, "finished": True, "curve": [*progress["curve"], last]}
        self.refused(trainer, tensors, {**header, "progress": progress}, tmp_path)

    def test_not_the_one_that_was_written(self, llama, parts, cut_off, tmp_path):
        trainer, tensors, header = cut_off
        save_tensors(tmp_path / "state.safetensors", tensors, header)
        assert Trainer(llama, *parts, trainer.settings, folder=tmp_path, resume=True).progress.step == 4

    def refused(self, trainer, tensors, header, folder):
        save_tensors(folder / "state.safetensors", tensors, header)
        with pytest.raises(NtpsError, match=r"damaged.* without resume|state of a run"):
            trainer._read_state(folder / "state.safetensors")
        assert trainer.progress == Progress(micro_batch=trainer.settings.batch_size)
        assert not trainer.best


class TestSaved:
    def test_plain_peft_reads_the_adapter_and_the_head_fits_it(self, tiny_llama, llama, parts, lora):
        from peft import PeftModel
        from safetensors.torch import load_file
        from transformers import AutoModel

        tuned, folder = lora.tuned, lora.folder
        assert tuned.best_step > 0
        network = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_llama), folder).eval()
        head = load_file(folder / "head.safetensors")
        texts = parts[1].texts
        features = []
        with torch.no_grad():
            for row in llama.tokenize(texts).ids:
                states = network(input_ids=torch.tensor([row])).last_hidden_state
                features.append(states[0].mean(0))
        plain = torch.stack(features)
        np.testing.assert_allclose(plain.numpy(), tuned.features(texts), atol=1e-5)
        frozen = torch.stack([llama.hidden_states(*llama.pad([r]))[-1][0].mean(0) for r in llama.tokenize(texts).ids])
        assert (plain - frozen).abs().max() > 1e-3
        guess = (plain @ head["weight"].T + head["bias"]).argmax(1).numpy()
        assert np.array_equal(guess, tuned.predict(texts))
        record = json.loads((folder / "training.json").read_text())
        assert record["curve"] == tuned.curve
        assert record["classes"] == ["first", "second"]
        assert not list(folder.glob(".*"))
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # none is readable by its owner only

    def test_the_merged_model_is_the_adapted_one(self, llama, parts):
        tuned = fine_tune(llama, *parts, settings=FAST, progress=False)
        before = tuned.features(parts[1].texts)
        merged = tuned.merge()
        assert not any("lora" in name for name, _ in merged.model.named_modules())
        states = [
            merged.hidden_states(*merged.pad([row]))[-1][0].mean(0) for row in merged.tokenize(parts[1].texts).ids
        ]
        np.testing.assert_allclose(torch.stack(states).numpy(), before, atol=1e-5)
        assert merged.fingerprint != llama.fingerprint

    def test_adapters_that_were_merged_cannot_be_saved(self, llama, parts, tmp_path):
        tuned = fine_tune(llama, *parts, settings=replace(FAST, steps=1), progress=False)
        tuned.merge()
        with pytest.raises(NtpsError, match="save before you merge"):
            tuned.save(tmp_path / "late")
        assert not (tmp_path / "late").exists()

    def test_full_fine_tuning_is_saved_as_a_model(self, parts, full):
        assert full.tuned.best_step > 0
        again = load_model(str(full.folder))
        rows = again.tokenize(parts[1].texts).ids
        states = torch.stack([again.hidden_states(*again.pad([row]))[-1][0].mean(0) for row in rows])
        np.testing.assert_allclose(states.numpy(), full.tuned.features(parts[1].texts), atol=1e-5)

    def test_leftovers_of_a_killed_process_go_and_the_umask_decides_who_may_read(self, llama, lora, tmp_path):
        (tmp_path / ".saving.killed").mkdir()
        (tmp_path / ".saving.killed" / "adapter_model.safetensors").write_bytes(b"half")
        mask = os.umask(0o027)
        try:
            lora.tuned.save(tmp_path)
        finally:
            os.umask(mask)
        names = {"adapter_model.safetensors", "adapter_config.json", "head.safetensors", "training.json"}
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(names, 0o640)


class TestTwoRuns:
    def test_the_second_into_one_folder_is_refused_before_a_step(self, llama, parts, lora, tmp_path, monkeypatch):
        monkeypatch.setattr(Trainer, "run", None)
        with held_folder(tmp_path):
            for resume in (False, True):
                with pytest.raises(NtpsError, match="another run is writing"):
                    fine_tune(llama, *parts, settings=FAST, output=tmp_path, resume=resume, progress=False)
            with pytest.raises(NtpsError, match="another run is writing"):
                lora.tuned.save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_run_holds_its_folder_until_all_is_written(self, llama, parts, tmp_path, monkeypatch):
        real, refused = adapters.write_adapter, []

        def write(*arguments):
            with pytest.raises(NtpsError, match="another run"), held_folder(tmp_path / "out"):
                pass
            refused.append(True)
            real(*arguments)

        monkeypatch.setattr(adapters, "write_adapter", write)
        fine_tune(llama, *parts, settings=replace(FAST, steps=1), output=tmp_path / "out", progress=False)
        assert refused == [True]
        assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


class TestTargets:
    def test_paper_is_query_key_and_value_and_all_linear_is_all(self, llama, tiny_gpt2):
        names = target_names(llama.model, "paper")
        assert {name.rsplit(".", 1)[-1] for name in names} == {"q_proj", "k_proj", "v_proj"}
        assert len(names) == 9
        assert len(target_names(llama.model, "all-linear")) == 21
        gpt2 = target_names(load_model(str(tiny_gpt2)).model, "paper")
        assert {name.split(".", 2)[-1] for name in gpt2} == {"attn.c_attn"}
        assert target_names(llama.model, ("1.mlp.up_proj",)) == ["layers.1.mlp.up_proj"]

    def test_an_unknown_target_is_answered_with_those_there_are(self, llama):
        with pytest.raises(
            NtpsError, match=r"'query' is not a linear module .* q_proj, k_proj, v_proj, o_proj, gate_proj"
        ):
            target_names(llama.model, ("query",))

    def test_start_layer_leaves_earlier_blocks_alone(self, llama):
        names = target_names(llama.model, "paper", 2)
        assert [name.split(".")[1] for name in names] == ["2"] * 3
        assert len(target_names(llama.model, "all-linear", 1)) == 14
        with pytest.raises(NtpsError, match="start_layer is 3; the last block with linear modules is 2"):
            target_names(llama.model, "paper", 3)

    def test_a_network_without_such_modules_says_which_it_has(self, llama, monkeypatch):
        monkeypatch.setattr(ntps.finetune.adapters, "_QUERY_KEY_VALUE", {"qqq"})
        with pytest.raises(NtpsError, match=r"no query, key or value module, .* its linear modules: q_proj, k_proj"):
            target_names(llama.model, "paper")


class TestRecipes:
    """The values of the authors' scripts."""

    def test_values(self):
        paper = TrainSettings.recipe("paper")
        assert (paper.method, paper.target, paper.rank, paper.alpha, paper.dropout) == ("lora", "paper", 32, 32, 0.05)
        assert (paper.optimizer, paper.learning_rate, paper.weight_decay) == ("adafactor", 1e-4, 1e-5)
        assert (paper.clip_norm, paper.warmup, paper.schedule) == (None, 0.05, "cosine")
        assert (paper.batch_size, paper.steps, paper.evaluate_every) == (1, 5000, 500)
        assert (paper.head, paper.head_dropout, paper.keep) == ("random", 0.05, "last")
        probe = TrainSettings.recipe("paper-probe").for_texts(1000)
        assert (probe.method, probe.optimizer, probe.learning_rate, probe.weight_decay) == (
            "probe",
            "adamw",
            1e-4,
            0.01,
        )
        assert (probe.batch_size, probe.epochs, probe.steps, probe.schedule) == (64, 50, 800, "constant")
        assert {probe.rate(step) for step in range(800)} == {1e-4}
        scratch = TrainSettings.recipe("paper-scratch")
        assert (scratch.method, scratch.steps, scratch.optimizer) == ("scratch", 10000, "adafactor")
        assert TrainSettings.recipe("paper", steps=7, rank=4).steps == 7
        assert [TrainSettings.recipe(name).dtype for name in RECIPES] == ["bfloat16", "bfloat16", "float32"]
        with pytest.raises(NtpsError, match="recipe is 'papers'; choose one of: paper, paper-probe, paper-scratch"):
            TrainSettings.recipe("papers")

    def test_a_model_of_another_type_is_refused_and_a_name_is_loaded_in_it(self, llama, tiny_llama, parts):
        with pytest.raises(NtpsError, match=r"dtype is bfloat16, and .* is loaded in float32; load it in bfloat16"):
            fine_tune(llama, *parts, settings=TrainSettings.recipe("paper", steps=1, rank=4), progress=False)
        settings = TrainSettings.recipe("paper", steps=1, rank=4)
        options = {"layers": [-1], "analyses": (), "progress": False}
        result = before_and_after(str(tiny_llama), order_task(160), settings=settings, **options)
        assert result.provenance["dtype"] == "bfloat16"

    def test_the_optimiser_is_adafactor_with_its_own_clipping(self, llama, parts):
        group = Trainer(
            llama, *parts, TrainSettings.recipe("paper", steps=1, rank=4, dtype=None)
        ).optimizer.param_groups[0]
        assert (group["clip_threshold"], group["weight_decay"], group["lr"]) == (1.0, 1e-5, 1e-4)
        assert not group["relative_step"] and not group["scale_parameter"]

    def test_a_run(self, llama, parts, monkeypatch):
        clipped = []
        real = torch.nn.utils.clip_grad_norm_
        monkeypatch.setattr(
            torch.nn.utils, "clip_grad_norm_", lambda p, largest: (clipped.append(largest), real(p, largest))[1]
        )
        settings = TrainSettings.recipe("paper", steps=4, rank=4, evaluate_every=2, learning_rate=0.05, dtype="float32")
        tuned = fine_tune(llama, *parts, settings=settings, progress=False)
        assert tuned.best_step == 4  # the last, however bad
        assert clipped == [float("inf")] * 4
        adapted = {
            name.split(".lora_")[0].rsplit(".", 1)[-1]
            for name, _ in tuned.adapter.named_parameters()
            if "lora_" in name
        }
        assert adapted == {"q_proj", "k_proj", "v_proj"}
        assert torch.equal(tuned.initial_head.scale, torch.ones(24)) and not tuned.initial_head.mean.any()
        assert tuned.initial_head.weight.abs().max() <= 24**-0.5
        assert not torch.equal(tuned.initial_head.weight, tuned.head.weight)

    def test_the_head_drops_inputs_in_training_alone(self, llama, parts):
        settings = TrainSettings.recipe("paper-probe", epochs=1, head_dropout=0.5, batch_size=16, dtype=None)
        tuned = fine_tune(llama, *parts, settings=settings, progress=False)
        x = torch.ones(3, 24)
        assert torch.equal(tuned.head(x), tuned.head(x))
        tuned.head.train()
        assert not torch.equal(tuned.head(x), tuned.head(x))
        other = fine_tune(llama, *parts, settings=replace(settings, head_dropout=0.0), progress=False)
        assert not torch.equal(other.head.weight, tuned.head.weight)


class TestRefused:
    @pytest.mark.parametrize(
        "change, said",
        [
            ({"rank": 0}, r"rank is 0; it must be at least 1"),
            ({"rank": 25}, r"rank is 25, above the model's width; choose between 1 and 24"),
            ({"learning_rate": 0}, r"learning_rate is 0; it must be a number above 0"),
            ({"learning_rate": -1e-3}, r"learning_rate"),
            ({"learning_rate": float("nan")}, r"learning_rate is nan"),
            ({"learning_rate": "fast"}, r"learning_rate"),
            ({"steps": 0}, r"steps is 0"),
            ({"steps": 2.5}, r"steps is 2.5; it must be a whole number"),
            ({"method": "qlora"}, r"choose one of: lora, probe, full, scratch"),
            ({"optimizer": "sgd"}, r"choose one of: adamw, adafactor"),
            ({"dropout": 1.0}, r"dropout is 1.0"),
            ({"target": "attention"}, r"choose one of: all-linear, paper"),
            ({"target": ()}, r"target is \(\)"),
            ({"batch_size": 0}, r"batch_size is 0"),
            ({"patience": 0}, r"patience is 0"),
            ({"max_length": 1}, r"max_length is 1"),
            ({"margin": -1}, r"margin is -1"),
            ({"warmup": 2}, r"warmup is 2"),
            ({"clip_norm": 0}, r"clip_norm is 0; it must be a number above 0"),
            ({"head": "large"}, r"choose one of: probe, random"),
            ({"head_dropout": 1}, r"head_dropout is 1"),
            ({"keep": "first"}, r"choose one of: best, last"),
            ({"schedule": "linear"}, r"choose one of: cosine, constant"),
            ({"start_layer": -1}, r"start_layer is -1"),
            ({"epochs": 0}, r"epochs is 0"),
            ({"validation": 1}, r"validation is 1"),
        ],
    )
    def test_settings(self, change, said):
        with pytest.raises(NtpsError, match=said):
            replace(FAST, **change).for_width(24)

    def test_texts_without_a_class(self, llama):
        task = load_task(texts=["good film", "bad film", "dull book", "a cat"], labels=["a", "b", "c", "d"])
        with pytest.raises(NtpsError, match=r"2 training texts for 4 classes"):
            fine_tune(llama, task.subset([0, 1]), task, settings=FAST, progress=False)
        with pytest.raises(NtpsError, match=r"class 'c' has no text in the validation part"):
            fine_tune(llama, task, task.subset([0, 1, 3, 3]), settings=FAST, progress=False)

    def test_a_text_without_tokens(self, llama, parts):
        blank = load_task(texts=["good", " ", "bad", "film"], labels=["first", "second"] * 2)
        with pytest.raises(NtpsError, match=r"text 2 .* has no token"):
            fine_tune(llama, blank, parts[1], settings=FAST, progress=False)

    def test_a_model_whose_states_are_not_finite(self, tiny_llama, parts):
        model = load_model(tiny_llama)
        with torch.no_grad():
            model.model.norm.weight[3] = math.nan
        with pytest.raises(NtpsError, match=r"layer 3 has a hidden state that is not finite, in text 0 \('"):
            fine_tune(model, *parts, settings=FAST, progress=False)

    def test_a_loss_that_is_not_finite(self, llama, parts, monkeypatch):
        with pytest.raises(NtpsError, match=r"not finite at step \d+; try a learning_rate below 1e\+30"):
            fine_tune(llama, *parts, settings=replace(FAST, learning_rate=1e30), progress=False)
        entropy, calls = ntps.finetune.loop._cross_entropy, []

        def planted(logits, labels, reduction="mean"):
            calls.append(reduction)
            return entropy(logits, labels, reduction) * (float("nan") if calls.count("sum") == 3 else 1)

        monkeypatch.setattr(ntps.finetune.loop, "_cross_entropy", planted)
        with pytest.raises(NtpsError, match=r"the loss is not finite at step 3; try a learning_rate below 0.005"):
            fine_tune(llama, *parts, settings=FAST, progress=False)

    def test_a_model_spread_over_devices(self, llama, parts, monkeypatch):
        monkeypatch.setattr(llama.model, "hf_device_map", {"a": 0, "b": 1}, raising=False)
        with pytest.raises(NtpsError, match="spread over devices"):
            fine_tune(llama, *parts, settings=FAST, progress=False)
