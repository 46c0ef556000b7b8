"""How many CPU threads one worker computes with."""

from __future__ import annotations

import os

import torch


def use_cpus(cpus: float, ranks: int = 1) -> None:
    """Sets torch's threads for the calling thread's work. Call it in the thread that computes.

    Ray gives a worker that asks for less than one CPU a single OpenMP thread. A fraction, as on a
    laptop, means here that nothing is reserved: such a worker uses the whole machine when it computes,
    or its part of it where `ranks` compute in step.
    """
    reserved = int(cpus)
    torch.set_num_threads(reserved or max(1, len(os.sched_getaffinity(0)) // ranks))
