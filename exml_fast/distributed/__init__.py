"""Synthesis past one machine: a job is cut into shards, which any number of workers makes in any order."""

from exml_fast.distributed.executors import Executor, LocalExecutor, Lost
from exml_fast.distributed.job import Job, load_job, prepare
from exml_fast.distributed.ray_executor import RayExecutor
from exml_fast.distributed.run import resume, synthesize
from exml_fast.distributed.slurm_executor import SlurmExecutor
from exml_fast.distributed.worker import make_shard

__all__ = [
    "Executor",
    "Job",
    "LocalExecutor",
    "Lost",
    "RayExecutor",
    "SlurmExecutor",
    "load_job",
    "make_shard",
    "prepare",
    "resume",
    "synthesize",
]
