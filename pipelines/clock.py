"""The clock of a session: which generation, which step, which noise level, which branch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import FrameType

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor

from vidsparse.pipelines.runs import BY_NOISE, Reading, Run, Unnamed, kind_of
from vidsparse.progress import Progress


class Clock:
    """One per session, shared by all its transformers.

    A *generation* is one call of a pipeline; a *run* is one pass through a list of steps, of which
    a generation of several windows has several. Steps are counted through a generation.

    Args:
        on_generation: Called when one begins.
        on_run: Called when another run of the same generation begins.
        on_note: Called with what had to be assumed.

    Attributes:
        step: Denoising step of the generation, from 0; -1 before the first.
        sigma: Noise level in [0, 1]; None between generations.
        progress: Where in its run the step stands; None if unknown, and between generations.
        branch: Guidance branch.
        known: Whether somebody said which step this is; if not, nothing may be remembered.
        runs: How many runs have begun in this session.
        context: What the pipeline last said of itself.
    """

    def __init__(
        self,
        on_generation: Callable[[], None],
        on_run: Callable[[], None] = lambda: None,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> None:
        self._on_generation = on_generation
        self._on_run = on_run
        self._on_note = on_note
        self.context: CacheContext | None = None
        self.runs = 0
        self.finish()

    def begin(self, reading: Reading) -> None:
        """A transformer starts a forward call."""
        make = kind_of(reading, self._run)
        if type(self._run) is not make or not self._goes_on(reading):
            self._start(make, reading)
        run, before = self._run, self.step
        assert run is not None
        step, self.sigma, self.progress = run.move(reading)
        self.step, self.known = self._base + step, run.known
        if self.step != before:
            self._names.clear()
        self.branch = self._name(reading.context)
        if reading.trains:
            return
        if not run.known:
            self._on_note(Unnamed.note)
        elif self.progress is not None and self.progress.is_alone:
            self._on_note(BY_NOISE)

    def finish(self) -> None:
        """The generation is over."""
        self._run: Run | None = None
        self._frame: FrameType | None = (
            None  # of the pipeline's call, until it ends or another comes
        )
        self._names: Counter[str] = Counter()
        self._base = 0
        self.step, self.sigma, self.branch = -1, None, ""
        self.progress: Progress | None = None
        self.known = False

    def _start(self, make: Callable[[Reading], Run], reading: Reading) -> None:
        """Another run begins: of the same generation where the same call of a pipeline makes it."""
        goes_on = self._frame is not None and reading.frame is self._frame
        self._frame = reading.frame
        self._run = make(reading)
        self._base = self.step + 1 if goes_on else 0
        self.step = -1
        self.runs += 1
        (self._on_run if goes_on else self._on_generation)()

    def _goes_on(self, reading: Reading) -> bool:
        is_same = self._run is not None and self._run.goes_on(reading)
        return is_same and reading.frame is self._frame

    def _name(self, context: CacheContext | None) -> str:
        """The branch of a call; one that comes again within a step is another."""
        name = f"call{self._names.total()}" if context is None else context.name
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}.{self._names[name]}"


def read_noise(timestep: Tensor | float | None, clean: float, full: float) -> float | None:
    """The noise level in [0, 1] that a timestep says; of single tokens', the highest.

    Computed on the host, since a device may lack float64.

    Args:
        timestep: What carries the noise level; None if there is nothing.
        clean: Its value without noise.
        full: Its value with nothing else.
    """
    if timestep is None:
        return None
    values = torch.as_tensor(timestep).detach().cpu().double()
    return float(((values - clean) / (full - clean)).max())
