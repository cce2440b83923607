"""The engines behind ``attention``, what each can do, and which one ``auto`` takes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.cpu import cpu_attention
from vidsparse.kernels.engines.cpu_observe import observe_gathered
from vidsparse.kernels.engines.flash import flash_attention, flash_unsupported
from vidsparse.kernels.engines.flex import flex_attention, flex_unsupported
from vidsparse.kernels.engines.int8 import int8_unsupported, low_bit_attention
from vidsparse.kernels.engines.native import native_attention, native_unsupported, observe_native
from vidsparse.kernels.engines.observe import Observed, observe_reference
from vidsparse.kernels.engines.reference import reference_attention
from vidsparse.kernels.engines.triton import observe_triton, triton_attention, triton_unsupported
from vidsparse.kernels.engines.xformers import xformers_attention, xformers_unsupported
from vidsparse.kernels.native import build

MEASURED = Path(__file__).parent.parent / "measured.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A way to run a block plan.

    Attributes:
        name: What ``engine=`` is given.
        run: ``(q, k, v, plan, *, scale, return_lse) -> (out, lse)``, as
            ``reference_attention``.
        unsupported: Every reason why it cannot run a case, as sentences; of a report on each block
            only what ``observe`` could not do besides.
        observe: ``(q, k, v, plan, *, scale) -> Observed``, as ``observe_reference``;
            None where it cannot report what it saw of each block.
        takes_pooled: Whether it runs pooled stand-ins; for others they are added afterwards.
        takes_partial: Whether it runs blocks that are computed in part.
        automatic: Whether ``auto`` may take it.
    """

    name: str
    run: Callable[..., tuple[Tensor, Tensor | None]]
    unsupported: Callable[[Case], list[str]]
    observe: Callable[..., Observed] | None = None
    takes_pooled: bool = False
    takes_partial: bool = False
    automatic: bool = True

    def why_not(self, case: Case) -> list[str]:
        """Every reason why it cannot run a case; empty when it can."""
        reasons = self.unsupported(case)
        if case.observe and self.observe is None:
            reasons = [*reasons, _cannot_observe()]
        if case.partial and not self.takes_partial:
            reasons = [*reasons, _cannot_mask()]
        return reasons


class Choice(NamedTuple):
    """An engine and the reason it was taken."""

    engine: str
    why: str


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="triton",
            run=triton_attention,
            unsupported=triton_unsupported,
            observe=observe_triton,
            takes_pooled=True,
            takes_partial=True,
        ),
        Engine(
            name="int8",
            run=low_bit_attention,
            unsupported=int8_unsupported,
            takes_pooled=True,
            automatic=False,  # it rounds: that is asked for, by a preset's precision
        ),
        Engine(name="flash", run=flash_attention, unsupported=flash_unsupported),
        Engine(name="flex", run=flex_attention, unsupported=flex_unsupported, takes_partial=True),
        Engine(
            name="xformers",
            run=xformers_attention,
            unsupported=xformers_unsupported,
            automatic=False,  # whether a plan is block-diagonal cannot be seen without a sync
        ),
        Engine(
            name="native",
            run=native_attention,
            unsupported=native_unsupported,
            observe=observe_native,
            takes_pooled=True,
            takes_partial=True,
        ),
        Engine(
            name="cpu",
            run=cpu_attention,
            unsupported=lambda case: [],
            observe=observe_gathered,
            takes_pooled=True,
            takes_partial=True,
        ),
        Engine(
            name="reference",
            run=reference_attention,
            unsupported=lambda case: [],
            observe=observe_reference,
            takes_pooled=True,
            takes_partial=True,
        ),
    )
}
WITHOUT_MEASUREMENT = {
    "cpu": ("native", "cpu", "reference"),
    "cuda": ("triton", "flash", "flex", "cpu"),
}


def choose_engine(case: Case) -> Choice:
    """Name the engine that ``engine="auto"`` takes for a case, and say why.

    Of the engines that can run it, the one that was fastest on this kind of GPU at the nearest
    head_dim and block size; ``kernels/measured.json`` holds what ``vidsparse bench kernels`` found.
    """
    able = [e.name for e in ENGINES.values() if e.automatic and not e.why_not(case)]
    speeds = _measured(case)
    known = [name for name in able if name in speeds]
    if known:
        best = max(known, key=lambda name: speeds[name])
        others = ", ".join(
            f"{name} {speeds[name]:.0f}" for name in sorted(known, key=lambda n: -speeds[n])
        )
        return Choice(best, f"fastest measured on this kind of GPU, mean TFLOP/s: {others}")
    preferred = WITHOUT_MEASUREMENT.get(case.device_type, ("cpu", "reference"))
    for name in (*preferred, "reference"):
        if name in able:
            return Choice(name, _why_preferred(name, case))
    raise AssertionError("the reference engine runs everything")


def _why_preferred(name: str, case: Case) -> str:
    if case.device_type == "cpu" and name == "native":
        return "a loop compiled on this machine, the fastest engine on a CPU"
    if case.device_type == "cpu":
        reasons = "; ".join(ENGINES["native"].why_not(case))
        return f"gathered keys, slower than native, which cannot run: {reasons}"
    where = case.device_type if case.arch is None else f"sm_{case.arch[0]}{case.arch[1]}"
    return f"nothing was measured on {where}; this is the first in line that can run it"


@functools.lru_cache(maxsize=256)
def resolve_engine(engine: str, case: Case) -> str:
    """Name the engine that runs a case: the one that is asked for, or the choice of ``auto``.

    Raises:
        BadInputError: For an unknown engine, or, with every reason, one that cannot run the case.
    """
    check_engine(engine, observe=case.observe)
    if engine == "auto":
        return choose_engine(case).engine
    if reasons := ENGINES[engine].why_not(case):
        raise BadInputError(f"engine {engine!r} cannot run this: {'; '.join(reasons)}")
    return engine


def why_gathered(ran: Mapping[str, int]) -> str | None:
    """What a user should know where keys were gathered for lack of the compiled engine, or None.

    Args:
        ran: How often each engine ran.
    """
    problem = build.why_not() if "cpu" in ran else None
    if problem is None:
        return None
    return f"attention gathers keys, which is slow on a busy CPU, as native cannot run: {problem}"


def check_engine(engine: str, *, observe: bool = False) -> None:
    """Raise BadInputError for an unknown engine, or for one that is to observe and cannot.

    Args:
        engine: "auto", or a name.
        observe: Whether a report on each block will be wanted.
    """
    if engine == "auto":
        return
    if engine not in ENGINES:
        raise BadInputError(f"unknown engine {engine!r}: choose auto, {', '.join(sorted(ENGINES))}")
    if observe and ENGINES[engine].observe is None:
        raise BadInputError(f"engine {engine!r} cannot run this: {_cannot_observe()}")


def _cannot_observe() -> str:
    able = ", ".join(name for name, each in ENGINES.items() if each.observe is not None)
    return (
        f"it does not report what it saw of each block, as this preset needs: choose auto, {able}"
    )


def _cannot_mask() -> str:
    able = ", ".join(name for name, each in ENGINES.items() if each.takes_partial)
    return f"it computes whole blocks alone, and some of this plan are partial: choose auto, {able}"


def _measured(case: Case) -> dict[str, float]:
    """TFLOP/s of each engine at the measured case nearest to this one; empty if there is none."""
    if case.arch is None or case.observe:
        return {}
    rows = [row for row in _table() if tuple(row["arch"]) == tuple(case.arch)]

    def distance(row: dict[str, Any]) -> tuple[int, int]:
        blocks = abs(row["q_block"] - case.q_block) + abs(row["kv_block"] - case.kv_block)
        return abs(row["head_dim"] - case.head_dim), blocks

    if not rows or case.dtype not in (torch.float16, torch.bfloat16) or case.offsets:
        return {}
    return min(rows, key=distance)["tflops"]


def measured_dense(case: Case) -> dict[str, float]:
    """TFLOP/s of dense attention by engine, at the nearest head_dim; empty where none is known."""
    rows = [row for row in _table("dense") if tuple(row["arch"]) == case.arch]
    if not rows or case.dtype not in (torch.float16, torch.bfloat16):
        return {}
    return min(rows, key=lambda row: abs(row["head_dim"] - case.head_dim))["tflops"]


@functools.cache
def _table(part: str = "rows") -> list[dict[str, Any]]:
    return json.loads(MEASURED.read_text(encoding="utf-8"))[part] if MEASURED.exists() else []
