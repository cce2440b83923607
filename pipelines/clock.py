"""The clock of a pipeline: which step, which noise level, which guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor

from vidsparse.pipelines.noise import level_after


class Clock:
    """One per pipeline, shared by all its transformers.

    It believes the pipeline's own ``cache_context`` first. Where a pipeline tells nothing, the
    noise level is read from the timestep argument, which waits for the device once per forward.

    Args:
        train_timesteps: The timestep of pure noise.
        on_start: Called when a generation begins: noise has risen, the last one has finished, or
            the pipeline is where it has been before, since the last one was cut short.
        levels: Noise levels of the steps of this generation, asked when it begins; empty if nobody
            knows.

    Attributes:
        step: Denoising step, from 0; -1 before the first.
        sigma: Noise level in [0, 1], None between generations.
        next_sigma: Noise level of the step after this one; None if unknown, or at the last.
        branch: Guidance branch.
        context: What the pipeline last said of itself.
    """

    def __init__(
        self,
        train_timesteps: int,
        on_start: Callable[[], None],
        levels: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        self._train_timesteps = train_timesteps
        self._on_start = on_start
        self._ask_levels = levels
        self.context: CacheContext | None = None
        self.finish()

    def begin(
        self, timestep: Tensor | float | None, noise: tuple[float, float] | None = None
    ) -> None:
        """A transformer starts a forward call.

        Args:
            timestep: What carries the noise level.
            noise: Its value without noise and with nothing else; 0 and ``train_timesteps``.
        """
        sigma = self._read_sigma(timestep, noise or (0.0, self._train_timesteps))
        has_risen = self.sigma is not None and sigma is not None and sigma > self.sigma
        if self.sigma is None or has_risen or self._has_been_here():
            self.step, self._calls = 0, 0
            self._seen.clear()
            self._levels = self._ask_levels()
            self._on_start()
        elif sigma != self.sigma:
            self.step, self._calls = self.step + 1, 0
        else:
            self._calls += 1
        self.next_sigma = None if sigma is None else level_after(sigma, self._levels)
        self.sigma = sigma
        if self.context is not None and self.context.step_index is not None:
            self.step = self.context.step_index
            self._seen.add((self.step, self.context.name))
        self.branch = self.context.name if self.context is not None else f"call{self._calls}"

    def finish(self) -> None:
        """The generation is over."""
        self._seen: set[tuple[int, str]] = set()
        self.step, self.sigma, self.branch, self._calls = -1, None, "", 0
        self.next_sigma: float | None = None
        self._levels: Sequence[float] = ()

    def _has_been_here(self) -> bool:
        """Whether the pipeline names a step and branch again: the run before was cut short."""
        return (
            self.context is not None and (self.context.step_index, self.context.name) in self._seen
        )

    def _read_sigma(
        self, timestep: Tensor | float | None, noise: tuple[float, float]
    ) -> float | None:
        if self.context is not None and self.context.sigma is not None:
            return float(self.context.sigma)
        if timestep is None:
            return None
        clean, full = noise
        values = torch.as_tensor(timestep).double()
        return float(((values - clean) / (full - clean)).max())  # of tokens, those with most noise
