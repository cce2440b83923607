"""What ``vidsparse bench kernels`` measures: every engine at real shapes, beside dense attention.

Each engine is checked against float64 on sampled rows before it is timed. All candidates of a row
of the table take turns in one process; efficiency is ``density * dense / sparse``, against the
fastest dense attention on the machine.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsparse.comparison.baselines import CUDNN, FLASH_4, PLAIN, dense_calls, runs
from vidsparse.errors import BadInputError
from vidsparse.files import replace_file
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.table import ENGINES
from vidsparse.kernels.plan import BlockPlan
from vidsparse.metrics.latency import Timing, take_turns
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.radial import Radial
from vidsparse.policies.selectors import Threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One self-attention call of a model.

    Attributes:
        name: Model and size.
        heads: Number of heads.
        grid: Token grid.
        head_dim: Dimension of a head.
    """

    name: str
    heads: int
    grid: TokenGrid
    head_dim: int


def _shape(name: str, heads: int, grid: str, head_dim: int) -> Shape:
    return Shape(name=name, heads=heads, grid=TokenGrid.parse(grid), head_dim=head_dim)


GPU_SHAPES = (
    _shape("wan-1.3b-480p", 12, "21x30x52", 128),
    _shape("wan-14b-720p", 40, "21x45x80", 128),
    _shape("hunyuan-720p", 24, "33x45x80+256", 128),
    _shape("cogvideox", 48, "226+13x30x45", 64),
    _shape("flux-4k", 24, "512+1x256x256", 128),
)
CPU_SHAPES = (
    _shape("tiny-25x160x160", 4, "7x20x20", 64),
    _shape("tiny-49x256x256", 4, "13x32x32", 64),
)
DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
SAMPLED_ROWS = 64
SETTLE_MS = 200.0  # in which the clock of a GPU becomes a candidate's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to run.

    Attributes:
        shapes: Names of shapes; all of the machine's when empty.
        densities: Of the random lists.
        engines: Names of engines; every one that can run when empty.
        rounds: Timed rounds.
        radial: Whether to run radial lists too.
        q_block: Tokens in a query block.
        kv_block: Tokens in a key block.
    """

    shapes: tuple[str, ...] = ()
    densities: tuple[float, ...] = DENSITIES
    engines: tuple[str, ...] = ()
    rounds: int = 7
    radial: bool = True
    q_block: int
    kv_block: int


def run(settings: Settings, report: Callable[[dict[str, Any]], None]) -> None:
    """Measure everything; ``report`` gets each row as it is done."""
    for shape in _chosen_shapes(settings):
        q, k, v = _tensors(shape)
        for pattern, plan in _plans(shape, settings, q):
            for row in _measure(shape, pattern, plan, settings, q, k, v):
                report(row)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def usual_block() -> int:
    """Tokens in a block: what tensor cores like, or what a small grid needs."""
    return 128 if device() == "cuda" else 64


TURNS = (
    "medians of rounds in which all candidates of a shape and density take turns, on a GPU each "
    f"after {SETTLE_MS:.0f} ms of its own that are not timed"
)


def record(rows: list[dict[str, Any]], command: str, what: str = TURNS) -> dict[str, Any]:
    """The rows with everything that is needed to repeat them, and what their numbers are."""
    from vidsparse.versions import versions

    name = torch.cuda.get_device_name() if device() == "cuda" else platform.processor()
    return {
        "command": command,
        "device": name or platform.machine(),
        "versions": versions(),
        "what": what,
        "rows": rows,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def _chosen_shapes(settings: Settings) -> list[Shape]:
    known = {shape.name: shape for shape in (GPU_SHAPES if device() == "cuda" else CPU_SHAPES)}
    if unknown := [name for name in settings.shapes if name not in known]:
        raise BadInputError(
            f"no shape {unknown[0]!r} for {device()}: choose from {', '.join(known)}"
        )
    return [known[name] for name in settings.shapes] or list(known.values())


def _tensors(shape: Shape) -> tuple[Tensor, ...]:
    """Random q, k and v, laid out as diffusers has them."""
    dtype = torch.bfloat16 if device() == "cuda" else torch.float32
    size = (1, shape.grid.tokens, shape.heads, shape.head_dim)
    made = (torch.randn(size, device=device(), dtype=dtype) for _ in range(3))
    return tuple(x.transpose(1, 2) for x in made)


def _plans(shape: Shape, settings: Settings, q: Tensor) -> Iterator[tuple[str, BlockPlan]]:
    for density in settings.densities:
        yield "random", random_plan(shape, density, settings.q_block, settings.kv_block, q.device)
    if settings.radial and shape.grid.frames > 1 and settings.q_block == settings.kv_block:
        for density in (None, 0.5):
            yield "radial", _radial_plan(shape, density, settings.q_block, q.device)


def random_plan(
    shape: Shape, density: float, q_block: int, kv_block: int, where: torch.device
) -> BlockPlan:
    """Lists of as many random blocks in every row, different in each head."""
    tokens = shape.grid.tokens
    rows, columns = -(-tokens // q_block), -(-tokens // kv_block)
    count = max(1, round(density * columns))
    index = torch.empty(1, shape.heads, rows, count, dtype=torch.int32, device=where)
    for head in range(shape.heads):  # one at a time: the sort would take more memory than the call
        drawn = torch.rand(rows, columns, device=where).argsort(dim=-1)[:, :count]
        index[0, head] = drawn.sort(dim=-1).values
    return BlockPlan(
        kv_count=torch.full(index.shape[:3], count, dtype=torch.int32, device=where),
        kv_index=index,
        q_len=tokens,
        kv_len=tokens,
        q_block=q_block,
        kv_block=kv_block,
    )


def _radial_plan(shape: Shape, density: float | None, block: int, where: torch.device) -> BlockPlan:
    policy = Policy(estimator=Radial(), selector=Threshold(), density=density, block=block)
    inputs = Inputs(blocks=Blocks(shape.grid, block, where), heads=shape.heads)
    return Planner(policy).static_plan(inputs, 1.0)


def _measure(
    shape: Shape,
    pattern: str,
    plan: BlockPlan,
    settings: Settings,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Iterator[dict[str, Any]]:
    candidates = _dense(q, k, v)
    baselines = list(candidates)
    errors: dict[str, float] = {}
    extra: dict[str, int | None] = {}
    for name in _able(settings, q, k, v, plan):

        def call(name: str = name) -> Tensor:
            return attention(q, k, v, plan, engine=name)

        try:
            errors[name] = _sampled_error(call(), q, k, v, plan)
            extra[name] = _extra_bytes(call)
        except Exception as failure:  # of one engine; the others are still worth measuring
            sentence = " ".join(str(failure).split())[:300]
            yield {**_facts(shape, pattern, plan), "engine": name, "failed": sentence}
            continue
        candidates[name] = call
    times = take_turns(
        candidates,
        rounds=settings.rounds,
        device=device(),
        at_least_ms=40.0,
        settle_ms=SETTLE_MS if device() == "cuda" else 0.0,
    )
    best = min(times[name].median for name in baselines)
    density = plan.density
    flops = 4 * shape.grid.tokens**2 * shape.heads * shape.head_dim
    for name, timing in times.items():
        is_dense = name in baselines
        share = 1.0 if is_dense else density
        yield {
            **_facts(shape, pattern, plan),
            "density": share,
            "engine": name,
            "dense": is_dense,
            **_numbers(timing),
            "tflops": share * flops / timing.median / 1e9,
            "efficiency": share * best / timing.median,
            "speedup": best / timing.median,
            "error": errors.get(name),
            "extra_bytes": extra.get(name),
        }


def _facts(shape: Shape, pattern: str, plan: BlockPlan) -> dict[str, Any]:
    return {
        "shape": shape.name,
        "heads": shape.heads,
        "tokens": shape.grid.tokens,
        "head_dim": shape.head_dim,
        "pattern": pattern,
        "q_block": plan.q_block,
        "kv_block": plan.kv_block,
    }


def _numbers(timing: Timing) -> dict[str, Any]:
    numbers = asdict(timing)
    return {"ms": numbers["median"], "ms_iqr": numbers["spread"], "rounds": numbers["rounds"]}


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes of GPU memory a call takes at its peak, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _extra_bytes(call: Callable[[], Tensor]) -> int | None:
    """Bytes a warm call takes beyond its inputs and its output; None on a CPU."""
    if device() != "cuda":
        return None
    return peak_bytes(call) - call().nbytes


def _dense(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """Dense attention by the engines that may be the fastest here, by the name of their row."""
    shown = {CUDNN: "cudnn dense", FLASH_4: "flash dense"} if q.is_cuda else {PLAIN: "torch sdpa"}
    calls = dense_calls(q, k, v)
    return {row: calls[name] for name, row in shown.items() if runs(calls[name])}


def _able(settings: Settings, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> list[str]:
    """The engines to run: those asked for, or all that can and are meant for this."""
    if settings.engines:
        return list(settings.engines)
    case = Case.of(q, k, v, plan, False)
    skipped = {"reference", "xformers", "cpu" if q.is_cuda else ""}
    able = [e.name for e in ENGINES.values() if not e.unsupported(case)]
    return [name for name in able if name not in skipped]


def _sampled_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> float:
    """Relative error against float64 on random rows, among them the last, of two heads."""
    tokens = q.shape[2]
    rows = torch.randint(0, tokens, (SAMPLED_ROWS,))
    rows[-1] = tokens - 1
    worst = 0.0
    for head in (0, q.shape[1] - 1):
        query, key, value, ours = (x[0, head].cpu() for x in (q, k, v, out))
        key, value = key.double(), value.double()
        exact = torch.stack([_exact_row(query[r], key, value, plan, head, r) for r in rows])
        difference = ours[rows].double() - exact
        worst = max(worst, float(difference.norm() / exact.norm()))
    return worst


def _exact_row(
    q: Tensor, key: Tensor, value: Tensor, plan: BlockPlan, head: int, row: Tensor
) -> Tensor:
    lists, counts = (x[0, head % x.shape[1]].cpu() for x in (plan.kv_index, plan.kv_count))
    block = row // plan.q_block
    listed = lists[block, : int(counts[block])].long()
    tokens = (listed[:, None] * plan.kv_block + torch.arange(plan.kv_block)).flatten()
    tokens = tokens[tokens < plan.kv_len]
    scores = key[tokens] @ q.double() * q.shape[-1] ** -0.5
    return scores.softmax(dim=0) @ value[tokens]
