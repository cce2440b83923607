"""What is compared: presets on prompts and seeds, and what is measured of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.comparison.job import Job
from vidsparse.preset import Preset

if TYPE_CHECKING:
    from vidsparse.metrics.weights import Weights
    from vidsparse.pipelines.running.generate import Request

DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt with one seed.

    Attributes:
        prompt_index: Which prompt, from 0.
        request: What to generate.
    """

    prompt_index: int
    request: Request

    @property
    def key(self) -> str:
        """Name of its folder: the same wherever the prompt stands in a file of prompts."""
        prompt = self.request.prompt
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")
        short = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        return f"{words}-{short}-s{self.request.seed}".lstrip("-")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What was asked for.

    Attributes:
        job: With what model and where; one request for each prompt.
        presets: To compare with dense, as they will run on the model.
        seeds: Of the noise: every prompt is made with each.
        weights: Of learned metrics.
        wants_floor: Whether to compare dense with dense by another engine.
        wants_errors: Whether to measure the error of attention calls.
        repeats: How often each generation is timed.
    """

    job: Job
    presets: list[Preset]
    seeds: Sequence[int]
    weights: Weights | None = None
    wants_floor: bool = False
    wants_errors: bool = False
    repeats: int = 1

    @cached_property
    def cases(self) -> list[Case]:
        """Every prompt with every seed."""
        return [
            Case(prompt_index=index, request=replace(request, seed=seed))
            for index, request in enumerate(self.job.requests)
            for seed in self.seeds
        ]

    @property
    def names(self) -> list[str]:
        """Of what is made of each case: dense, then the presets."""
        return [DENSE, *(preset.name for preset in self.presets)]

    @cached_property
    def judge(self) -> Path | None:
        """Who can say what a clip shows; nobody but for the pipeline that ships."""
        from vidsparse.pipelines.running.checkpoints import TINY

        return TINY / "judge.safetensors" if self.job.checkpoint.source == TINY else None

    def asked(self, case: Case) -> dict[str, str] | None:
        """What the judge is to look for; None where it cannot judge."""
        from vidsparse.pipelines.running.prompts import read_parts

        return read_parts(case.request.prompt) if self.judge else None

    def not_judged(self) -> str | None:
        """Why clips are not judged; None where all are."""
        if self.judge is None:
            return "the judge knows only the clips of the pipeline that ships"
        foreign = [case.request.prompt for case in self.cases if self.asked(case) is None]
        if not foreign:
            return None
        return (
            f"{foreign[0]!r} is not in the language of the pipeline that ships, which its README "
            "shows"
        )
