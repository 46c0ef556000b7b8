"""How many CPU threads one worker computes with."""

from __future__ import annotations

import os

import torch


def use_cpus(cpus: float, workers: int) -> None:
    """Sets torch's threads for the calling thread's work. Call it in the thread that computes.

    Ray gives a worker that asks for less than one CPU a single OpenMP thread. For Tandem a fraction, as on a
    laptop, means that nothing is reserved: the worker gets an equal part of the machine, on which `workers`
    workers, itself included, compute at the same time.
    """
    torch.set_num_threads(int(cpus) or max(1, len(os.sched_getaffinity(0)) // workers))
