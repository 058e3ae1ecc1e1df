"""The recipe of the bundled models: `python -m ntps.miniworld.train --size all --output DIR`.

Plain next-token prediction on documents of the `pretrain` stream, each seen once, with a small Llama. Seeded: the same
machine and number of threads give the same losses. An interrupted run goes on with `--resume` as if it had not been.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ntps._files import atomic_path, atomic_write, read_json
from ntps.errors import NtpsError, in_range, one_of
from ntps.miniworld import words
from ntps.miniworld.card import write_card
from ntps.miniworld.checkpoints import CHECKSUMS, compute_checksums
from ntps.miniworld.language import Sample, sample_documents
from ntps.miniworld.likelihood import log_likelihood
from ntps.miniworld.recipe import RECIPES, build_model, build_tokenizer

VALIDATION = 2000
LOG_EVERY = 25


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
    return [
        torch.tensor([row + [0] * (max(map(len, rows_)) - len(row)) for row in rows_], dtype=torch.long)
        for rows_ in batches
    ]


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


def _save(path: Path, model: Any, tokenizer: Any, facts: dict[str, Any], validation: Sample) -> None:
    """Write a checkpoint in float16 with tokenizer, card and record; its loss is measured on what is written."""
    from safetensors.torch import save_file

    half = copy.deepcopy(model).half()
    loss = evaluate(copy.deepcopy(half).float(), tokenizer, validation)
    tensors = {key: value.cpu() for key, value in half.state_dict().items() if key != "lm_head.weight"}  # tied
    half.config.architectures = [type(half).__name__]
    half.config.dtype = torch.float16
    half.config.save_pretrained(path)
    with atomic_path(path / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    tokenizer.save_pretrained(path)
    write_card(path, path.name, {**facts, "loss": loss})


def _write_state(path: Path, parameters: dict[str, Any], optimizer: Any, record: dict[str, Any]) -> None:
    """Write all that a run needs to go on, in one file: it is there as a whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: parameter.data.cpu() for key, parameter in parameters.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"{key}|{moment}": optimizer.state[p][moment].cpu() for key, p in parameters.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"record": json.dumps(record)})


def _read_state(path: Path, parameters: dict[str, Any], optimizer: Any, run: dict[str, Any]) -> dict[str, Any]:
    """Read what `_write_state` wrote into the parameters and the optimiser, and return the record."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as state:
            record = json.loads(state.metadata()["record"])
            if record["run"] != run:
                raise NtpsError(f"{path} holds another run ({record['run']}); delete it or leave out --resume.")
            for key, parameter in parameters.items():
                parameter.data.copy_(state.get_tensor(key))
                moments = {m: state.get_tensor(f"{key}|{m}").to(parameter.device) for m in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(float(record["step"])), **moments}
    except SafetensorError as error:
        raise NtpsError(f"{path} is damaged ({error}); delete it or leave out --resume.") from error
    return record


def train(
    size: str,
    output: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    state_every: int = 250,
    **knobs: Any,
) -> dict[str, Any]:
    """Pretrain one model and write it, with its ladder, below `output`.

    Args:
        size: `small`, `base` or `large`.
        output: Folder for the model directories.
        seed: Of weights, documents and batch order.
        steps: Instead of the recipe's number.
        resume: Continue an interrupted run of the same size, seed, steps and knobs.
        device: Torch device.
        progress: Show a progress bar.
        state_every: Steps after which the state to resume from is written.
        **knobs: Attributes of `ntps.miniworld.Knobs`: the world to train on.

    Returns:
        The training record, as in `training.json`.

    Raises:
        NtpsError: If an argument is bad, or the state to resume from is damaged or belongs to another run.
    """
    from tqdm.auto import tqdm

    recipe = RECIPES[one_of(size, RECIPES, "size")]
    total = in_range(recipe.steps if steps is None else steps, 1, None, "steps")
    name = f"miniworld-{size}"
    validation = sample_documents(VALIDATION, split="validation", **knobs)
    entropy = float(-log_likelihood(validation).sum() / validation.n_tokens.sum())
    tokenizer = build_tokenizer()
    model = build_model(recipe, seed).to(device)
    corpus = sample_documents(total * recipe.batch, seed=seed, split="pretrain", **knobs)
    batches = make_batches(encode(corpus.texts, tokenizer), recipe.batch, seed)
    n_tokens = [int((ids[:, 1:] > 0).sum()) for ids in batches]
    per_batch = sum(n_tokens) / total
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    warmup = min(100, max(1, total // 10))
    run = {"size": size, "seed": seed, "steps": total, "knobs": {k: knobs[k] for k in sorted(knobs)}}
    state_path = Path(output) / f".{name}.state.safetensors"
    record: dict[str, Any] = {"run": run, "step": 0, "losses": [], "running": [], "seconds": 0.0}
    if resume and state_path.is_file():
        record = _read_state(state_path, parameters, optimizer, run)
    step, losses, running = record["step"], record["losses"], record["running"]
    clock = time.perf_counter() - record["seconds"]

    def facts() -> dict[str, Any]:
        return {
            **run,
            "step": step,
            "recipe": asdict(recipe),
            "n_parameters": sum(p.numel() for p in parameters.values()),
            "documents": step * recipe.batch,
            "tokens": sum(n_tokens[:step]),
            "entropy_rate": entropy,
            "validation_documents": VALIDATION,
            "vocabulary": len(words.all_words()),
            "losses": losses,
            "seconds": round(time.perf_counter() - clock, 1),
            "threads": torch.get_num_threads(),
            "device": str(device).partition(":")[0],
        }

    bar = tqdm(total=total, initial=step, desc=name, disable=not progress, unit="step")
    while step < total:
        if step in recipe.ladder:
            _save(Path(output) / f"{name}@step{step}", model, tokenizer, facts(), validation)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(
                (step + 1) / warmup, 0.5 + 0.5 * np.cos(np.pi * min(1.0, step / total))
            )
        loss = loss_sum(model, batches[step].to(device))
        # Divided by the mean, not by this batch's, number of tokens: every token weighs the same.
        (loss / per_batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running.append(float(loss.detach()) / n_tokens[step])
        step += 1
        bar.update()
        if step % LOG_EVERY == 0 or step == total:
            losses.append([step, round(sum(running) / len(running), 4)])
            bar.set_postfix(loss=f"{losses[-1][1]:.3f}", entropy=f"{entropy:.3f}")
            running = []
        if step % state_every == 0 and step < total:
            record = {"run": run, "step": step, "losses": losses, "running": running}
            record["seconds"] = time.perf_counter() - clock
            _write_state(state_path, parameters, optimizer, record)
    bar.close()
    _save(Path(output) / name, model, tokenizer, facts(), validation)
    state_path.unlink(missing_ok=True)
    atomic_write(Path(output) / CHECKSUMS, json.dumps(compute_checksums(Path(output)), indent=1) + "\n")
    return read_json(Path(output) / name / "training.json")


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
                progress=not options.quiet,
                **knobs,
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
