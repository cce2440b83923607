"""Of what a preset file was made, and by what: the same in every file that a command writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vidsparse.versions import versions

if TYPE_CHECKING:
    from vidsparse.comparison.job import Job
    from vidsparse.pipelines.running.generate import Request


def origin(job: Job, request: Request, machine: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The tables ``made_for`` and ``made_by``.

    Args:
        job: The model.
        request: One of its runs, which are all of one size.
        machine: As ``fingerprint.of_machine`` says it.
        command: How it was asked for.
    """
    video = {key: getattr(request, key) for key in ("frames", "height", "width", "steps")}
    grid = job.checkpoint.geometry.sequence(request.frames, request.height, request.width)
    return {
        "made_for": {
            "model": str(job.checkpoint.release or job.checkpoint.source),
            "pipeline": job.checkpoint.pipeline,
            **video,
            "guidance": request.guidance,
            "grid": str(grid),
            "dtype": job.dtype,
            "machine": str(machine["machine"]),
        },
        "made_by": {"command": command, **{k: v for k, v in versions().items() if v}},
    }
