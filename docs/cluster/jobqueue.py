"""A study on SLURM through Dask, which asks for workers as there are cells: `python jobqueue.py`, again to resume.

It needs `pip install 'ntps[cluster]' dask-jobqueue`.
"""

from dask_jobqueue import SLURMCluster
from distributed import Client

from ntps import run_study

MODELS = ["miniworld-small", "miniworld-base"]
TASKS = ["miniworld/topic", "miniworld/tense", "miniworld/sentiment", "miniworld/intent"]

if __name__ == "__main__":
    job = {"cores": 1, "job_cpu": 4, "memory": "32GB", "walltime": "04:00:00"}  # one thread of Dask's, four for torch
    with SLURMCluster(**job, job_extra_directives=["--gres=gpu:1"]) as cluster, Client(cluster) as client:
        cluster.adapt(maximum_jobs=8)
        print("dashboard:", client.dashboard_link)
        study = run_study(MODELS, TASKS, output="study", executor=client.get_executor(pure=False))
    print(study.table("explained_heldout"))
