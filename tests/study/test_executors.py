"""Studies through executors: whatever happens to the workers, the result is that of one process."""

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import kill_study, planted
from helpers.kill_study import make_tasks, other_labels

import ntps.study.cells
import ntps.study.executors
from ntps._version import __version__
from ntps.errors import NtpsError
from ntps.models import plan_pass
from ntps.study import StudySettings, run_study, study_executor
from ntps.study.executors import PROCESS_BYTES
from ntps.study.grid import make_grid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TESTS = Path(__file__).parents[1]
SETTINGS = replace(kill_study.SETTINGS, control=False)
N_CELLS = 5
KILLED = "task2"


class Inline(Executor):
    """Runs each job as it is submitted, in this process."""

    def __init__(self, change=lambda job: job):
        self.change, self.jobs = change, []

    def submit(self, job):
        self.jobs.append(job)
        future = Future()
        self.run(job, future)
        return future

    def run(self, job, future):
        try:
            future.set_result(self.change(job)())
        except Exception as error:
            future.set_exception(error)


class Backwards(Inline):
    """Runs so many jobs, the last first, when it has them all."""

    def __init__(self, count):
        super().__init__()
        self.count, self.waiting = count, []

    def run(self, job, future):
        self.waiting.append((job, future))
        for waiting in reversed(self.waiting) if len(self.waiting) == self.count else ():
            super().run(*waiting)


class Broken(Executor):
    """Takes a number of jobs, of which every future fails or is cancelled, and refuses the next."""

    def __init__(self, takes):
        self.takes = takes

    def submit(self, job):
        if not self.takes:
            raise RuntimeError("the pool is gone")
        self.takes -= 1
        future = Future()
        if self.takes % 2:
            future.set_exception(RuntimeError("the worker is gone"))
        else:
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


def run(folder, model, executor=None, tasks=None, **options):
    options = {"settings": SETTINGS, "progress": False, **options}
    tasks = make_tasks() if tasks is None else tasks
    return run_study([str(model)], tasks, output=folder, executor=executor, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_llama, one_thread):
    """What one process makes of the study."""
    return run(tmp_path_factory.mktemp("alone"), tiny_llama).to_dict()


@pytest.fixture
def warned(caplog):
    caplog.set_level("WARNING", logger="ntps")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("ntps")]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Return a function that plants faults in this process and those it starts, and the folder of their log."""

    def start(**faults):
        monkeypatch.setenv("PLANTED", json.dumps({"folder": str(tmp_path), **faults}))
        measure = planted.measuring(ntps.study.cells.measure, {"folder": tmp_path, "fail": faults.get("fail")})
        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        return tmp_path

    return start


class TestJobs:
    def test_the_cells_of_a_pass_are_one_job(self, tiny_llama):
        tasks = make_tasks(2)
        tasks.append(other_labels(tasks[0], "other"))
        grid = make_grid([str(tiny_llama), "nowhere"], tasks, replace(kill_study.SETTINGS, seeds=2))
        units = grid.passes(grid.cells)
        for unit in units:
            assert len({(cell.loading, unit.tasks[cell.task, cell.seed].texts_fingerprint) for cell in unit.cells}) == 1
            assert set(unit.tasks) == {(cell.task, cell.seed) for cell in unit.cells}
        # Pretrained: the texts of two tasks, whatever the seed; random weights: for each of two seeds.
        assert sorted(len(unit.cells) for unit in units) == [1, 1, 2, 2, 2, 4]
        assert {cell for unit in units for cell in unit.cells} == {cell for cell in grid.cells if not cell.reason}

    def test_gains_are_jobs_of_their_own_with_their_tests(self, tiny_llama):
        from ntps.finetune.settings import TrainSettings

        tasks = make_tasks(2)
        grid = make_grid([str(tiny_llama)], [*tasks, other_labels(tasks[0], "other")], SETTINGS, lora=TrainSettings())
        grid = replace(grid, tests={task.name: task for task in tasks})
        gains = [unit for unit in grid.passes(grid.cells) if unit.cells[0].kind == "gain"]
        assert [[cell.task for cell in unit.cells] for unit in gains] == [["task0"], ["other"], ["task1"]]
        assert [list(unit.tests) for unit in gains] == [["task0"], [], ["task1"]]

    def test_a_job_says_what_it_is(self, tmp_path, tiny_llama):
        executor = Inline()
        run(tmp_path, tiny_llama, executor, make_tasks(1))
        assert str(executor.jobs[0]).endswith("on task0, seed 0")


class TestFakes:
    def test_the_result_is_that_of_one_process(self, tmp_path, tiny_llama, alone, log, warned):
        folder = log()
        for executor in (Inline(), Backwards(N_CELLS)):
            (folder / "log").unlink(missing_ok=True)
            study = run(tmp_path / type(executor).__name__, tiny_llama, executor)
            assert study.to_dict() == alone
            assert len(executor.jobs) == len(set(planted.computed(folder))) == len(planted.computed(folder)) == N_CELLS
        assert warned() == []

    @pytest.mark.parametrize("takes", [0, 3, N_CELLS])
    def test_what_an_executor_loses_is_computed_here(self, tmp_path, tiny_llama, alone, log, warned, takes):
        folder = log()
        assert run(tmp_path / "out", tiny_llama, Broken(takes)).to_dict() == alone
        assert len(planted.computed(folder)) == N_CELLS
        (message,) = warned()
        assert message.startswith("workers were lost (") and message.endswith("this process computes what is missing.")

    def test_a_network_is_kept_from_job_to_job_and_not_from_call_to_call(self, tmp_path, monkeypatch, tiny_llama):
        loaded = []
        real = ntps.study.cells.load_model
        monkeypatch.setattr(ntps.study.cells, "load_model", lambda *a, **o: loaded.append(1) or real(*a, **o))
        for name in ("one", "two"):  # the model's files may have changed
            run(tmp_path / name, tiny_llama, Inline(), make_tasks(2))
        assert len(loaded) == 2

    def test_a_worker_of_another_version_is_refused(self, tmp_path, tiny_llama, log):
        folder = log()
        with pytest.raises(NtpsError, match=rf"version {__version__} .* 0\.0\.1"):
            run(tmp_path / "out", tiny_llama, Inline(lambda job: replace(job, version="0.0.1")))
        assert planted.computed(folder) == []

    def test_a_worker_that_does_not_see_the_folder_is_refused(self, tmp_path, tiny_llama):
        with pytest.raises(NtpsError, match=r"does not see .*gone; name an output that all machines share"):
            run(tmp_path / "out", tiny_llama, Inline(lambda job: replace(job, folder=tmp_path / "gone")))
        assert not (tmp_path / "gone").exists()

    def test_the_rest_is_cancelled_when_a_job_is_refused(self, tmp_path, tiny_llama):
        class First(Inline):
            def __init__(self):
                super().__init__()
                self.futures = []

            def submit(self, job):
                future = super().submit(replace(job, version="0.0.1")) if not self.futures else Future()
                self.futures.append(future)
                return future

        executor = First()
        with pytest.raises(NtpsError, match="version"):
            run(tmp_path, tiny_llama, executor)
        assert [future.cancelled() for future in executor.futures] == [False] + [True] * (N_CELLS - 1)

    def test_messages_come_once_from_whoever_computes(self, tmp_path, tiny_llama, log, warned):
        tasks, said = make_tasks(3), []
        for name, executor in (("here", None), ("there", Inline())):
            log(fail="task1")
            run(tmp_path / name, tiny_llama, executor, tasks, settings=replace(SETTINGS, max_length=3))
            said.append([message.partition("Traceback")[0] for message in warned()[len(said and said[0]) :]])
        cut, failed = "60 of 60 texts", "task1, seed 0 failed: RuntimeError: planted"
        assert [sum(words in message for message in said[1]) for words in (cut, failed)] == [1, 1]
        assert set(said[0]) == set(said[1])

    def test_threads_of_one_process_take_turns(self, tmp_path, tiny_llama, alone):
        with ThreadPoolExecutor(2) as executor:
            assert run(tmp_path, tiny_llama, executor).to_dict() == alone

    def test_what_is_no_executor_is_refused(self, tmp_path, tiny_llama):
        with pytest.raises(NtpsError, match=r"executor is a int; give a concurrent\.futures\.Executor"):
            run(tmp_path, tiny_llama, 4)

    def test_a_folder_that_cannot_be_written(self, tmp_path, tiny_llama):
        (tmp_path / "locks").write_text("")
        with pytest.raises(NtpsError, match="cannot write"):
            run(tmp_path, tiny_llama, Inline())


def refused(words, models=(), **options):
    """Whatever `study_executor` says, which begins with these words."""
    with pytest.raises(NtpsError, match=f"^{words}") as found, study_executor(models, **options):
        pass
    return str(found.value)


class TestRequests:
    @pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
    def test_numbers_of_workers(self, workers):
        refused(f"workers is {workers!r}; it must be", workers=workers)

    def test_one_worker_is_this_process(self):
        with study_executor(["nowhere"]) as executor:
            assert executor is None

    def test_workers_do_not_share_a_gpu(self, monkeypatch):
        monkeypatch.setattr(ntps.study.executors, "find_device", lambda device: torch.device("cuda:1"))
        refused("workers is 2, but cuda:1 is one GPU", workers=2)
        with study_executor([], workers=1) as executor:
            assert executor is None

    def test_workers_fit_into_the_memory(self, tiny_llama, monkeypatch):
        free = 100 * PROCESS_BYTES
        monkeypatch.setattr(ntps.study.executors, "free_memory", lambda: free)

        def most(*models, **settings):
            message = refused("workers is 1000000", models, workers=10**6, settings=StudySettings(**settings))
            return int(re.search(r"at most (\d+) would fit", message)[1])

        assert most("nowhere") == 100 > most(str(tiny_llama)) > most(str(tiny_llama), "miniworld-large") > 10
        assert most("miniworld-large", max_length=8) > most("miniworld-large")
        plan = plan_pass("miniworld-large", ["the " * 600] * 50, batch_size=32, device="cpu")
        fit = most("miniworld-large", limit=50)
        assert fit == int(free // (PROCESS_BYTES + plan.needs["memory"]))
        large = {"models": ["miniworld-large"], "settings": StudySettings(limit=50)}
        refused(f"workers is {fit + 1}", workers=fit + 1, **large)
        with study_executor(workers=fit, **large) as executor:
            assert isinstance(executor, ProcessPoolExecutor)

    def test_memory_that_is_not_known_is_not_planned(self, monkeypatch):
        monkeypatch.setattr(ntps.study.executors, "free_memory", lambda: None)
        with study_executor([], workers=10) as executor:
            assert isinstance(executor, ProcessPoolExecutor)

    def test_a_cluster_has_workers_of_its_own(self):
        refused("workers is 2, but the cluster at dask=tcp://a:1 has its own", workers=2, dask="tcp://a:1")

    def test_dask_that_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        assert "pip install 'ntps[cluster]'" in refused("dask needs its package", dask="local")

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "", "tcp://", "magic://x:1"])
    def test_an_address_that_nobody_answers(self, address):
        distributed = pytest.importorskip("distributed")
        start = time.monotonic()
        gc.disable()
        try:
            refused(f"dask is '{address}', where no scheduler answers within 5 seconds", dask=address)
            clients = [each for each in gc.get_objects() if issubclass(type(each), distributed.Client)]
        finally:
            gc.enable()
        assert time.monotonic() - start < 20
        # One that is not would be closed by the collector, perhaps while another starts: both then wait for ever.
        assert {client.status for client in clients} <= {"closed"}


@pytest.mark.long
def test_a_process_of_a_pool_has_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with study_executor([], workers=2) as executor:
        words = [executor.submit(os.getenv, name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")]
        assert executor.submit(planted.threads).result() == 3
        assert [future.result() for future in words] == ["3", "PASSIVE"]


@contextmanager
def planted_pool():
    """Two processes of `--workers 2` with what `PLANTED` says."""
    with study_executor([], workers=2) as executor:
        for future in [executor.submit(planted.plant, 2) for _ in range(2)]:  # one in each
            future.result()
        yield executor


@contextmanager
def planted_cluster():
    """A Dask cluster of two workers, which are planted anew when they are started anew."""
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    preload = {"distributed.worker.preload": ["helpers.planted"]}
    with dask.config.set(preload), study_executor([], workers=2, dask="local") as executor:
        yield executor


@contextmanager
def started(*words):
    """A process of Dask's command line, killed at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def planted_scheduler(folder):
    """A scheduler and two workers, each a process by itself; the scheduler is the victim of `kill`."""
    pytest.importorskip("distributed")
    where = folder / "scheduler.json"
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker += ["--preload", "helpers.planted", "--scheduler-file", str(where)]
    with started(*scheduler, "--scheduler-file", str(where)) as process, started(*worker), started(*worker):
        (folder / "victim").write_text(str(process.pid))
        while not where.exists() or len(list(folder.glob("planted-*"))) < 2:
            time.sleep(0.1)
            assert process.poll() is None
        with study_executor([], dask=json.loads(where.read_text())["address"]) as executor:
            yield executor


POOLS = {"processes": planted_pool, "dask": planted_cluster}


@pytest.mark.long
@pytest.mark.parametrize("kind", POOLS)
def test_a_cell_that_fails_and_a_worker_killed_in_the_middle(tmp_path, tiny_llama, log, warned, kind):
    """Dask gives the cell in flight to another worker; a pool breaks, and this process computes the rest."""
    folder = log(kill=KILLED, fail="task1")
    here = run(tmp_path / "here", tiny_llama)
    (failed,) = warned()
    (folder / "log").unlink()
    with POOLS[kind]() as executor:
        there = run(tmp_path / "there", tiny_llama, executor)
    assert (folder / "killed").exists()
    assert there.to_dict() == here.to_dict()
    assert there.cells[1].reason == "RuntimeError: planted" and "planted" in there.cells[1].traceback
    count = Counter(planted.computed(folder))
    assert len(count) == N_CELLS and count[KILLED] == 2
    # A pool ends its other process too, which may have been in a cell.
    assert sum(count.values()) - N_CELLS in ((1,) if kind == "dask" else (1, 2))
    again = [message.partition("\n")[0] for message in warned()[1:]]
    lost = [message for message in again if message.startswith("workers were lost (")]
    assert len(lost) == (kind == "processes")
    assert [message for message in again if message not in lost] == [failed.partition("\n")[0]]


@pytest.mark.long
def test_a_scheduler_that_goes_away(tmp_path, tiny_llama, alone, log, warned):
    folder = log(kill=KILLED)
    with planted_scheduler(folder) as executor:
        study = run(tmp_path / "out", tiny_llama, executor)
    assert (folder / "killed").exists()
    assert study.to_dict() == alone
    count = Counter(planted.computed(folder))
    assert len(count) == N_CELLS and sum(count.values()) - N_CELLS <= 2
    (message,) = warned()
    assert message.startswith("workers were lost (")
