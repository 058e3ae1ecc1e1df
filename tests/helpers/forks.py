"""Programs in processes of their own that start in milliseconds: forks of one process that has imported everything.

A fork has the imports of its parent and nothing else of it: the parent computes nothing and has one thread.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

IMPORTS = (
    "accelerate", "ntps.cli.app", "ntps.models.passes", "ntps.models.processes", "ntps.scoring",
    "sklearn.linear_model", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
)  # fmt: skip

GRACE = 60  # seconds that processes have after another one of them has failed, as torchrun ends them


def torchrun(count):
    """The variables that torchrun sets for each of several processes on this machine."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _free_port():
    """A port that the system gives to nobody who asks for any: one of those could be taken before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Forks:
    """One waiting process with an environment of its own; `run` lets forks of it execute a program."""

    def __init__(self, environment, *imports):
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, *IMPORTS, *imports],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, program, *variables):
        """Run a program in one fork per dictionary of further environment variables, all at once.

        Returns a namespace with `returncode`, `stdout` and `stderr` for each.
        """
        self.process.stdin.write(json.dumps([program, variables or [{}]]) + "\n")
        self.process.stdin.flush()
        return [SimpleNamespace(**done) for done in json.loads(self.process.stdout.readline())]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def _fork(program, variables, folder):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(variables)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["-c"]
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_codes(started):
    """The exit codes of processes; those that others leave waiting by failing are killed."""
    codes, deadline = {}, float("inf")
    while len(codes) < len(started):
        for process in set(started) - set(codes):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.005)
    return [codes[process] for process in started]


def _main(imports):
    for name in imports:
        __import__(name)
    for line in sys.stdin:
        program, several = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder, str(index)) for index in range(len(several))]
            for place in folders:
                place.mkdir()
            started = [_fork(program, *each) for each in zip(several, folders, strict=True)]
            codes = exit_codes(started)
            done = [
                {"returncode": code, **{name: (place / name).read_text() for name in ("stdout", "stderr")}}
                for code, place in zip(codes, folders, strict=True)
            ]
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
