"""What tests plant in the processes that compute a study's cells: a log of them, and one that kills or fails.

The environment says it, so that processes which others start find it too: `PLANTED` is JSON with `folder`, and `kill`
or `fail`, the name of a task. Dask's workers take this module as `--preload`; each process of a pool calls
`plant`.
"""

import json
import os
import signal
import time
from pathlib import Path


def measuring(real, faults):
    """A stand-in for `ntps.study.cells.measure` that writes each cell to a log before it computes it."""
    folder = Path(faults["folder"])

    def measure(representations, *rest, **options):
        cell = representations.task.name
        log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{cell}\n".encode())
        os.close(log)
        if cell == faults.get("fail"):
            raise RuntimeError("planted")
        if cell == faults.get("kill") and not (folder / "killed").exists():
            (folder / "killed").touch()
            victim = folder / "victim"  # by default this process
            os.kill(int(victim.read_text()) if victim.exists() else os.getpid(), signal.SIGKILL)
        return real(representations, *rest, **options)

    return measure


def plant(processes=1):
    """Plant it in this process, and wait until so many processes have it."""
    import torch

    import ntps.scoring.probes
    import ntps.study.cells

    faults = json.loads(os.environ["PLANTED"])
    torch.set_num_threads(1)
    ntps.scoring.probes.choose_c = lambda *_: 0.1
    ntps.study.cells.measure = measuring(ntps.study.cells.measure, faults)
    (Path(faults["folder"]) / f"planted-{os.getpid()}").touch()
    while len(list(Path(faults["folder"]).glob("planted-*"))) < processes:
        time.sleep(0.05)


def threads():
    """The threads that torch uses in this process."""
    import torch

    return torch.get_num_threads()


def dask_setup(worker):
    """Called by a Dask worker as it starts."""
    plant()


def computed(folder):
    """The tasks of the cells that were begun, in order."""
    log = Path(folder) / "log"
    return log.read_text().splitlines() if log.exists() else []
