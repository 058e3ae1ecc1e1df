"""Measure many short texts on a small model: memory above the model, tokens a minute, and what scoring holds then.

    python -m benchmarks.large --texts 1000 100000 1000000     # the last one: about a quarter of an hour on two cores

The texts are made on the spot, of sentences of the bundled language; each number of texts has a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ntps import Representations, Task, __version__, collect, load_model, load_task, score
from ntps._files import atomic_write
from ntps.models import representations

RESULTS = Path(__file__).parent / "results" / "large.json"
MODEL = "miniworld-small"
SENTENCES = 20_000  # from which texts are put together


def make_task(n: int) -> Task:
    """Return `n` texts of one to three sentences under the topic of the first."""
    made = load_task("miniworld/topic", n=SENTENCES // 5)
    pool = [(sentence, label) for text, label in zip(made.texts, made.labels, strict=True)
            for sentence in text.split(". ")]  # fmt: skip
    rng = np.random.default_rng(0)
    counts, picked = rng.integers(1, 4, n), rng.integers(0, len(pool), (n, 3))
    texts = [". ".join(pool[place][0] for place in row[:count]) for row, count in zip(picked, counts, strict=True)]
    return Task.of("large", texts, [int(pool[row[0]][1]) for row in picked], made.classes)


def memory(name: str) -> int:
    """Return an entry of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peaks_of(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Run a call; return its value, its seconds by the clock and of the processor, and the most memory meanwhile.

    Memory is resident: in all, and without what is mapped from files, which the system takes back when it needs it.
    """
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], memory("RssAnon"))

    watching = threading.Thread(target=watch)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    watching.start()
    start, used = time.perf_counter(), time.process_time()
    value = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    ended.set()
    watching.join()
    return value, {"seconds": seconds, "cpu_seconds": cpu, "peak": memory("VmHWM"), "peak_without_files": most[0]}


def measure(n: int, on_disk: bool) -> dict[str, Any]:
    """Return seconds and memory of reading and scoring `n` texts, in this process."""
    if on_disk:
        representations.IN_MEMORY = 0
    model = load_model(MODEL)
    score(collect(model, load_task("miniworld/topic", n=200), progress=False), probes=False)  # imports, buffers
    result: dict[str, Any] = {"texts": n, "states_on_disk": on_disk, "model": memory("VmRSS")}
    result["model_without_files"] = memory("RssAnon")
    task = make_task(n)
    result["with_texts"] = memory("VmRSS")
    tokenized, result["tokenize"] = peaks_of(lambda: model.tokenize(task.texts, 512))
    result["tokens"] = sum(map(len, tokenized.ids))
    del tokenized
    with tempfile.TemporaryDirectory() as folder:
        made, result["collect"] = peaks_of(lambda: collect(model, task, folder=folder, progress=False))
        result["states"] = made.states.nbytes
        result["disk"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        del made
        kept = Representations.load(Path(folder, "representations.safetensors"), task=task)
        _, result["score"] = peaks_of(lambda: score(kept, probes=False))
    result["tokens_a_minute"] = 60 * result["tokens"] / result["collect"]["seconds"]
    for part in ("collect", "score"):
        result[part]["above_model"] = result[part]["peak"] - result["model"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--on-disk", action="store_true", help="pooled states on disk, however few")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.texts[0], options.on_disk)))
        return
    rows = []
    for n in options.texts:
        command = [sys.executable, "-m", "benchmarks.large", "--here", "--texts", str(n)]
        command += ["--on-disk"] if options.on_disk else []
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(json.dumps(rows[-1], indent=2))
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__.partition("+")[0], "ntps": __version__}
    atomic_write(RESULTS, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
