"""The recipe of the bundled models: `python -m ntps.miniworld.train --size all --output DIR`.

Plain next-token prediction on documents of the `pretrain` stream, each seen once, with a small Llama. Seeded: the same
machine and number of threads give the same losses. With `--resume` an interrupted run continues as if it had never
stopped.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ntps._files import atomic_path, atomic_write, load_tensors, read_json, save_tensors
from ntps._text import progress as progress_bar
from ntps.errors import NtpsError, in_range, one_of
from ntps.miniworld import words
from ntps.miniworld.card import write_card
from ntps.miniworld.checkpoints import CHECKSUMS, compute_checksums
from ntps.miniworld.language import Sample, sample_documents
from ntps.miniworld.likelihood import log_likelihood
from ntps.miniworld.recipe import RECIPES, build_model, build_tokenizer

VALIDATION = 2000
LOG_EVERY = 25  # steps
STATE_EVERY = 250  # steps
STATE_KIND = "ntps-recipe-state"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


def encode(texts: tuple[str, ...], tokenizer: Any) -> list[list[int]]:
    """Return `<bos> words <eos>` ids for every text."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]


def make_batches(rows: list[list[int]], batch: int, seed: int | None) -> list[torch.Tensor]:
    """Group rows of similar length into right-padded batches, (batch, longest); a seed shuffles the batches."""
    window = batch * 50
    batches = []
    for start in range(0, len(rows), window):
        pool = sorted(rows[start : start + window], key=len)
        group = [pool[i : i + batch] for i in range(0, len(pool), batch)]
        if seed is not None:
            order = np.random.default_rng((seed, start)).permutation(len(group))
            group = [group[i] for i in order]
        batches += group
    sequences = [[torch.tensor(row, dtype=torch.long) for row in group] for group in batches]
    return [torch.nn.utils.rnn.pad_sequence(group, batch_first=True) for group in sequences]


def loss_sum(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy in nats of all tokens after the first; padding does not count."""
    # Right padding and causal attention: no position before the padding can see it, so no mask is needed.
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=0, reduction="sum"
    )


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, sample: Sample) -> float:
    """Return the mean loss on `sample` in nats per token."""
    model.eval()
    rows = encode(sample.texts, tokenizer)
    total = sum(float(loss_sum(model, ids.to(model.device))) for ids in make_batches(rows, 64, None))
    model.train()
    return total / sum(len(row) - 1 for row in rows)


@dataclass(kw_only=True)
class Progress:
    """The state of a run apart from its tensors, as JSON values.

    Attributes:
        step: Steps completed.
        losses: Pairs of a step and the mean loss since the last pair, in nats per token.
        recent: Losses of the steps since then.
        seconds: Duration of the run.
    """

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Pretraining:
    """One run of the recipe; arguments as for `train`."""

    def __init__(
        self,
        size: str,
        output: Path,
        *,
        seed: int = 0,
        steps: int | None = None,
        resume: bool = False,
        device: str = "cpu",
        knobs: Mapping[str, float] | None = None,
    ) -> None:
        self.recipe = RECIPES[one_of(size, RECIPES, "size")]
        self.steps = in_range(self.recipe.steps if steps is None else steps, 1, None, "steps")
        self.name, self.output, self.device = f"miniworld-{size}", Path(output), device
        world: dict[str, Any] = dict(sorted((knobs or {}).items()))
        self.validation = sample_documents(VALIDATION, split="validation", **world)
        self.entropy = float(-log_likelihood(self.validation).sum() / self.validation.n_tokens.sum())
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.recipe, seed).to(device)
        corpus = sample_documents(self.steps * self.recipe.batch, seed=seed, split="pretrain", **world)
        self.batches = make_batches(encode(corpus.texts, self.tokenizer), self.recipe.batch, seed)
        self.n_tokens = [int((ids[:, 1:] > 0).sum()) for ids in self.batches]
        self.parameters = dict(self.model.named_parameters())
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98))
        self.run_record = {"size": size, "seed": seed, "steps": self.steps, "knobs": world}
        self.state_path = self.output / f".{self.name}.state.safetensors"
        self.progress = Progress()
        if resume and self.state_path.is_file():
            self._read_state()
        self.started = time.perf_counter() - self.progress.seconds

    def run(self) -> Iterator[int]:
        """Train to the end and write the model with its ladder.

        Yields:
            The number of each step, when it is complete and its state, if one is due, written.
        """
        while self.progress.step < self.steps:
            if self.progress.step in self.recipe.ladder:
                self._save(self.output / f"{self.name}@step{self.progress.step}")
            self._advance()
            if self.progress.step % STATE_EVERY == 0 and self.progress.step < self.steps:
                self._write_state()
            yield self.progress.step
        self._save(self.output / self.name)
        self.state_path.unlink(missing_ok=True)
        atomic_write(self.output / CHECKSUMS, json.dumps(compute_checksums(self.output), indent=1) + "\n")

    def _advance(self) -> None:
        """Take one step of the optimiser."""
        progress, step = self.progress, self.progress.step
        warmup = min(100, max(1, self.steps // 10))
        cosine = 0.5 + 0.5 * np.cos(np.pi * min(1.0, step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min((step + 1) / warmup, cosine)
        loss = loss_sum(self.model, self.batches[step].to(self.device))
        # Divided by the mean number of tokens, not by this batch's: every token weighs the same.
        (loss / (sum(self.n_tokens) / self.steps)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.recent.append(float(loss.detach()) / self.n_tokens[step])
        progress.step += 1
        if progress.step % LOG_EVERY == 0 or progress.step == self.steps:
            progress.losses.append([progress.step, round(sum(progress.recent) / len(progress.recent), 4)])
            progress.recent = []

    def _save(self, path: Path) -> None:
        """Write a checkpoint in float16 with tokenizer, card and record; its loss is measured on what is written."""
        from safetensors.torch import save_file

        half = copy.deepcopy(self.model).half()
        loss = evaluate(copy.deepcopy(half).float(), self.tokenizer, self.validation)
        tensors = {key: value.cpu() for key, value in half.state_dict().items() if key != "lm_head.weight"}  # tied
        half.config.architectures = [type(half).__name__]
        half.config.dtype = torch.float16
        half.config.save_pretrained(path)
        with atomic_path(path / "model.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        self.tokenizer.save_pretrained(path)
        write_card(path, path.name, {**self._facts(), "loss": loss})

    def _facts(self) -> dict[str, Any]:
        """Return the training record as it is now, without the loss."""
        step = self.progress.step
        return {
            **self.run_record,
            "step": step,
            "recipe": asdict(self.recipe),
            "n_parameters": sum(p.numel() for p in self.parameters.values()),
            "documents": step * self.recipe.batch,
            "tokens": sum(self.n_tokens[:step]),
            "entropy_rate": self.entropy,
            "validation_documents": VALIDATION,
            "vocabulary": len(words.all_words()),
            "losses": self.progress.losses,
            "seconds": round(time.perf_counter() - self.started, 1),
            "threads": torch.get_num_threads(),
            "device": str(self.device).partition(":")[0],
        }

    def _write_state(self) -> None:
        """Write all that the run needs to continue."""
        self.progress.seconds = time.perf_counter() - self.started
        tensors: dict[str, torch.Tensor] = dict(self.parameters)
        for moment in MOMENTS:
            tensors |= {f"{key}|{moment}": self.optimizer.state[p][moment] for key, p in self.parameters.items()}
        header = {"kind": STATE_KIND, "run": self.run_record, "progress": asdict(self.progress)}
        save_tensors(self.state_path, tensors, header)

    def _read_state(self) -> None:
        """Restore what `_write_state` wrote.

        Raises:
            NtpsError: If it is damaged or belongs to another run.
        """
        advice = "delete it or train without resume"
        try:
            tensors, header = load_tensors(self.state_path, STATE_KIND)
        except NtpsError as error:
            raise NtpsError(f"{str(error).rstrip('.')}; {advice}.") from error
        if header["run"] != self.run_record:
            raise NtpsError(f"{self.state_path} is the state of another run ({header['run']}); {advice}.")
        self.progress = Progress(**header["progress"])
        for key, parameter in self.parameters.items():
            parameter.data.copy_(tensors[key])
            moments = {moment: tensors[f"{key}|{moment}"].to(parameter.device) for moment in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.progress.step)), **moments}


def train(
    size: str,
    output: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool | None = None,
    knobs: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Pretrain one model and write it, with its ladder, below `output`.

    Args:
        size: `small`, `base` or `large`.
        output: Folder for the model directories.
        seed: Seed of weights, documents and batch order.
        steps: Number of steps; the recipe's by default.
        resume: Continue an interrupted run of the same size, seed, steps and knobs, if there is one.
        device: Torch device.
        progress: Whether to show a progress bar; by default when stderr is a terminal.
        knobs: Attributes of `ntps.miniworld.Knobs` for the world to train on.

    Returns:
        The training record, as in `training.json`.

    Raises:
        NtpsError: If an argument is out of range, or the state to resume from is damaged or belongs to another run.
    """
    run = Pretraining(size, output, seed=seed, steps=steps, resume=resume, device=device, knobs=knobs)
    with progress_bar(run.steps, "steps", progress, initial=run.progress.step, desc=run.name) as bar:
        for step in run.run():
            if run.progress.losses and not run.progress.recent:
                bar.set_description(f"{run.name}, loss {run.progress.losses[-1][1]:.3f}")
            bar.update(step - bar.n)
    return read_json(run.output / run.name / "training.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ntps.miniworld.train", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=(*RECIPES, "all"), default="all")
    parser.add_argument("--output", type=Path, default=Path("runs/miniworld"), help="folder for the model directories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, help="torch threads (the losses depend on it in the last digits)")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--knob", action="append", default=[], metavar="NAME=VALUE", help="change the world: topic=0.2")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        knobs: dict[str, Any] = {}
        for knob in options.knob:
            key, _, value = knob.partition("=")
            try:
                knobs[key] = int(value) if key == "vocabulary" else float(value)
            except ValueError as error:
                raise NtpsError(f"--knob {knob}: it must be NAME=NUMBER.") from error
        for size in RECIPES if options.size == "all" else (options.size,):
            facts = train(
                size,
                options.output,
                seed=options.seed,
                steps=options.steps,
                resume=options.resume,
                device=device,
                progress=False if options.quiet else None,
                knobs=knobs,
            )
            print(
                f"miniworld-{size}: {facts['loss']:.4f} nats per token, entropy rate {facts['entropy_rate']:.4f} "
                f"(+{facts['loss'] / facts['entropy_rate'] - 1:.1%}), {facts['seconds']:.0f} s"
            )
    except NtpsError as error:
        print(f"ntps: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
