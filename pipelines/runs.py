"""Runs: one pass through a list of denoising steps, and where in it a forward call stands.

Who knows that is asked: the pipeline that runs, its scheduler, ``cache_context``. A noise level
identifies nothing (in bf16 those of neighbouring steps are one number), so only a bare transformer
of which nobody says anything is followed by it, and then nothing is remembered from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, ClassVar, Protocol

from diffusers.hooks.hooks import CacheContext

from vidsparse.pipelines.caller import Caller
from vidsparse.pipelines.levels import noise_levels, share_behind, steps_listed
from vidsparse.progress import Progress

BY_NOISE = (
    "nobody says how many steps this run has, so how far it has come was read from its noise, as "
    "if that fell evenly: run it by a pipeline, or by the scheduler of the one in the session"
)
NEAR = 0.005  # what rounding to bf16, or to whole timesteps, makes of a noise level


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reading:
    """What can be read of a forward call when it begins.

    Attributes:
        noise: Reads the noise level, in [0, 1], from the argument that carries it; None if there
            is none. Waits for the device.
        context: What the pipeline says in ``cache_context``.
        caller: The pipeline that makes the call.
        scheduler: Its scheduler; in a loop of the user's own, that of the session's pipeline.
        is_listed: Whether the argument holds what a scheduler of flow matching lists.
        trains: Whether the call has gradients: then it is a run of its own, at any noise level.
    """

    noise: Callable[[], float | None]
    context: CacheContext | None = None
    caller: Caller | None = None
    scheduler: Any = None
    is_listed: bool = True
    trains: bool = False

    @property
    def frame(self) -> FrameType | None:
        """Of the pipeline's call; None in a loop of the user's own."""
        return None if self.caller is None else self.caller.frame

    @property
    def told_step(self) -> int | None:
        """The step that ``cache_context`` names."""
        return None if self.context is None else self.context.step_index

    @property
    def told_sigma(self) -> float | None:
        """The noise level that ``cache_context`` names."""
        sigma = None if self.context is None else self.context.sigma
        return None if sigma is None else float(sigma)

    @property
    def index(self) -> int | None:
        """Where the scheduler stands in its list; None before its first step, or if unsaid."""
        return getattr(self.scheduler, "step_index", None)


class Run(Protocol):
    """One pass through a list of steps.

    Attributes:
        known: Whether somebody says which step a call belongs to.
    """

    known: bool

    def goes_on(self, reading: Reading) -> bool:
        """Whether a call belongs to this run, or begins another."""
        ...

    def move(self, reading: Reading) -> tuple[int, float | None, Progress | None]:
        """The step of a call, from 0, its noise level, and where in the run it stands."""
        ...


class Listed:
    """A run whose scheduler says where it stands: a pipeline's, or a loop of one's own over it.

    A new list of timesteps is a new run: each call of a pipeline sets one. So is more noise than
    before where a pipeline steps copies of its scheduler, window by window of a long video.
    """

    def __init__(self, reading: Reading) -> None:
        scheduler = reading.scheduler
        self._timesteps = getattr(scheduler, "timesteps", None)
        self._levels = noise_levels(scheduler) if scheduler is not None else []
        self._number = steps_listed(scheduler)
        self._behind = share_behind(scheduler, self._levels)
        self._counted = 0
        self._moment: Any = _moment(reading)
        self._place = _place(reading)
        self._noise = reading.noise()
        self._starts = self._possible_starts(reading)
        self._agrees = reading.is_listed and self._is_near(self._starts[0], self._noise)
        self.known = True

    @classmethod
    def fits(cls, reading: Reading, run: Run | None) -> bool:
        """Whether a loop of one's own goes by the scheduler, as its noise level shows."""
        scheduler = reading.scheduler
        if getattr(scheduler, "num_inference_steps", None) is None:
            return False
        index, noise, levels = reading.index, reading.noise(), noise_levels(scheduler)
        if noise is None or not reading.is_listed:
            return False
        if index is None and isinstance(run, Listed) and run.goes_on(reading):
            return noise == run._noise
        at = index if index is not None else (getattr(scheduler, "begin_index", None) or 0)
        return at < len(levels) and abs(levels[at] - noise) <= NEAR

    def goes_on(self, reading: Reading) -> bool:
        is_same = getattr(reading.scheduler, "timesteps", None) is self._timesteps
        return is_same and not self._begins_again(reading)

    def _begins_again(self, reading: Reading) -> bool:
        moment = _moment(reading)
        if moment is None or moment is self._moment or _is_placed(reading) or self._noise is None:
            return False
        noise = reading.noise()
        return noise is not None and noise > self._noise + NEAR

    def move(self, reading: Reading) -> tuple[int, float | None, Progress | None]:
        noise = self._notice(reading)
        step = self._step(reading)
        at = self._starts[-1] + step
        is_placed = reading.index is not None or step == 0
        is_in_list = self._agrees and is_placed and at < len(self._levels)
        sigma = reading.told_sigma
        if sigma is None:
            sigma = self._levels[at] if is_in_list else noise
        if sigma is None:
            sigma = reading.noise()
        if self._moment is not None and not _is_placed(reading):
            self._noise = reading.noise()
        return step, sigma, self._progress(step, reading) or _by_noise(sigma)

    def _progress(self, step: int, reading: Reading) -> Progress | None:
        """By the number of steps on the list, of which a run may leave out the first ones.

        A pipeline that denoises frame after frame says itself that it makes more.
        """
        if not self._number:
            return None
        whole, start = Progress.first(self._number, self._behind), self._starts[0]
        bounds = whole.bounds[min(start, len(whole.bounds) - 2) :]
        number = 0 if reading.caller is None else _steps_said(reading.caller.pipeline)
        if number >= len(bounds):
            bounds = Progress.first(number, bounds[0]).bounds
        return Progress(bounds, min(step, len(bounds) - 2))

    def _notice(self, reading: Reading) -> float | None:
        """Count a new step where anything says that it is one; the noise level if it was read."""
        noise, place, moment = None, _place(reading), _moment(reading)
        moved = place != self._place or moment is not self._moment
        if not _says_place(reading) and moment is None:  # DDIM and its kin keep no index
            noise = reading.noise()
            moved = noise != self._noise
            falls = zip(self._levels, self._levels[1:], strict=False)
            self.known = all(one > other for one, other in falls)
        self._counted += moved
        self._place, self._moment = place, moment
        self._noise = noise if noise is not None else self._noise
        return noise

    def _step(self, reading: Reading) -> int:
        if reading.told_step is not None:
            return reading.told_step
        if reading.index is None:
            return self._counted
        passed = [start for start in self._starts if start < reading.index]
        self._starts = [max(passed)] if passed else self._starts[:1]
        return max(0, reading.index - self._starts[0])

    def _possible_starts(self, reading: Reading) -> list[int]:
        """Where in the list a run begins; second-order schedulers list a level twice."""
        begin = getattr(reading.scheduler, "begin_index", None)
        if reading.index is not None or begin is not None:
            return [reading.index if reading.index is not None else int(begin or 0)]
        if not self._levels or self._noise is None:
            return [0]
        distance = [abs(level - self._noise) for level in self._levels]
        least = min(distance)
        return [at for at, each in enumerate(distance) if each == least]

    def _is_near(self, at: int, noise: float | None) -> bool:
        is_there = noise is not None and at < len(self._levels)
        return is_there and abs(self._levels[at] - (noise or 0.0)) <= NEAR


class Named:
    """A run whose steps ``cache_context`` names, in a loop of one's own."""

    known: bool = True

    def __init__(self, reading: Reading) -> None:
        self._seen: set[tuple[int | None, str]] = set()
        self._step = -1

    def goes_on(self, reading: Reading) -> bool:
        """A step that comes before this one, or a branch that comes again, begins another."""
        assert reading.context is not None
        step = reading.told_step
        return (
            step is not None
            and step >= self._step
            and (step, reading.context.name) not in self._seen
        )

    def move(self, reading: Reading) -> tuple[int, float | None, Progress | None]:
        step, context = reading.told_step, reading.context
        assert step is not None
        assert context is not None
        self._step = step
        self._seen.add((step, context.name))
        sigma = reading.told_sigma
        sigma = reading.noise() if sigma is None else sigma
        return step, sigma, _by_list(reading, step, sigma) or _by_noise(sigma)


class Unnamed:
    """Calls of which nobody says anything: their order is taken from their noise, for statistics.

    More noise begins another run, less noise another step; the same noise is another branch,
    unless its name has come before.
    """

    known: bool = False
    note: ClassVar[str] = (
        "nobody says which step a call of this transformer belongs to, so steps were told apart by "
        "their noise level, every call planned for itself, and how far the run has come was read "
        "from the noise, as if it fell evenly; say it with "
        "transformer.cache_context(name, step_index=i)"
    )

    def __init__(self, reading: Reading) -> None:
        self._noise: float | None = None
        self._step = -1
        self._names: set[str] = set()

    def goes_on(self, reading: Reading) -> bool:
        noise = self._read(reading)
        if noise is None or self._noise is None:
            return noise is self._noise
        comes_again = reading.context is not None and reading.context.name in self._names
        return noise < self._noise or (noise == self._noise and not comes_again)

    def move(self, reading: Reading) -> tuple[int, float | None, Progress | None]:
        noise = self._read(reading)
        if noise != self._noise or self._step < 0:
            self._step, self._noise = self._step + 1, noise
            self._names.clear()
        if reading.context is not None:
            self._names.add(reading.context.name)
        return self._step, noise, _by_noise(noise)

    def _read(self, reading: Reading) -> float | None:
        told = reading.told_sigma
        return reading.noise() if told is None else told


def _by_list(reading: Reading, step: int, sigma: float | None) -> Progress | None:
    """By the scheduler's list, if the noise level of a step is the one that stands there."""
    scheduler, number = reading.scheduler, steps_listed(reading.scheduler)
    if step >= number or not reading.is_listed or sigma is None:
        return None
    levels = noise_levels(scheduler)
    if abs(levels[step] - sigma) > NEAR:
        return None
    return replace(Progress.first(number, share_behind(scheduler, levels)), at=step)


def _by_noise(sigma: float | None) -> Progress | None:
    """The progress of a run that is not shifted, where nobody says how many steps it takes."""
    return None if sigma is None else Progress.alone(1 - sigma)


def _place(reading: Reading) -> tuple[int | None, int | None]:
    return reading.told_step, reading.index


def _moment(reading: Reading) -> Any:
    """What many pipelines set anew at each step; told apart as an object, never by its number."""
    pipeline = None if reading.caller is None else reading.caller.pipeline
    return getattr(pipeline, "_current_timestep", None)


def _steps_said(pipeline: Any) -> int:
    said = getattr(pipeline, "_num_timesteps", None)
    return said if isinstance(said, int) else 0


def _is_placed(reading: Reading) -> bool:
    return reading.told_step is not None or reading.index is not None


def _says_place(reading: Reading) -> bool:
    return reading.told_step is not None or hasattr(reading.scheduler, "step_index")


def kind_of(reading: Reading, run: Run | None) -> Callable[[Reading], Run]:
    """Who is asked about a call: a pipeline, ``cache_context``, a scheduler, or nobody."""
    if reading.trains:
        return Unnamed
    if reading.caller is not None:
        return Listed
    if reading.told_step is not None:
        return Named
    return Listed if Listed.fits(reading, run) else Unnamed
