"""The machine that a run was timed on, and how busy it was: times of another do not compare."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

from vidsparse.metrics.report.results import Machine


def here() -> Machine:
    """Model of the CPU, cores that this process may use, threads of torch, and the load now.

    ``load`` is the average number of processes that ran or waited in the last minute, our own
    included; None where the system does not say.
    """
    return Machine(
        cpu=cpu_model(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


@cache
def cpu_model() -> str:
    """The name that the CPU gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    known = (*names, platform.processor(), platform.machine())
    return next(filter(None, known), "unknown")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
