"""What a second GPU gains: one forward call on one device and on all, dense and sparse.

    torchrun --nproc-per-node 2 benchmarks/context_parallel.py -o benchmarks/results/two_gpus.json
    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --tiny    # on a CPU: that it runs

Random weights, as in ``real_sizes.py``, whose models these are. Every device first runs the whole
model by itself, then all of them share the sequence; the outputs have to agree. All heads of random
weights are alike: ``--uneven`` gives them densities that differ, and runs each preset with heads
dealt out by their density and, beside it, left in turn. The densities rise from 0.05 to 0.45, one
head after another, or are those that the shipped, trained model's heads have with a preset
(``--uneven balanced``; ``uneven_heads.py`` says which there are).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import real_sizes
import torch
import torch.distributed as dist
import uneven_heads
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from ranks import Ranks, RefusedError
from real_sizes import DEVICE, MODELS, Real, build, clock
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import vidsparse
from vidsparse.bench import kernel_bench
from vidsparse.pipelines import parallel
from vidsparse.pipelines.models import find_model

WARM = 2  # steps
ULYSSES, RING = "ulysses", "ring"
IN_TURN = ", heads in turn"
DEALT_FROM = parallel.WORTH


class Case(NamedTuple):
    """What runs.

    Attributes:
        preset: None for diffusers alone.
        heads: Which densities its heads have, as ``uneven_heads`` names them; None for its own.
        is_dealt: Whether heads are dealt out by their density.
    """

    preset: str | None = None
    heads: str | None = None
    is_dealt: bool = True

    def facts(self) -> dict[str, Any]:
        """What the row says of it."""
        name = (self.preset or "dense") + ("" if self.is_dealt else IN_TURN)
        return {"preset": name} | ({"heads": self.heads} if self.heads else {})


class Timed(NamedTuple):
    output: Tensor
    ms: float
    stats: Any
    peak_bytes: int | None
    densities: uneven_heads.Densities | None


@torch.inference_mode()
def main() -> None:
    args = parse()
    ranks = Ranks.join()
    if ranks.devices == 1:
        sys.exit("one device shares nothing: start this by torchrun --nproc-per-node 2")
    rows: list[dict[str, Any]] = []
    for name in args.models.split(","):
        for row in measure(name, args, ranks):
            rows.append(row)
            if ranks.number:
                continue
            shown = {key: value for key, value in row.items() if key != "head_densities"}
            print(shown, flush=True)
            if args.output:
                what = f"medians of {args.steps} forward calls after {WARM}, of the slowest device"
                kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv), what))
    ranks.leave()


def measure(name: str, args: argparse.Namespace, ranks: Ranks) -> Iterator[dict[str, Any]]:
    """Every case alone, then shared in each way."""
    cases, alone = cases_of(args), {}
    for by in (None, *ways(args.by)):
        model, real = built(name, args)
        torch.manual_seed(0)
        inputs = real.inputs(real_sizes.TINY_SCALE if args.tiny else 1.0, model.config)
        if by:
            share_the_sequence(model, by, ranks.number, ranks.devices)
        for case in cases:
            if by is None and not case.is_dealt:
                continue
            try:
                made = ranks.attempt(call(model, real, inputs, case, args))
            except RefusedError as error:
                if by is None or case.preset:
                    raise
                # diffusers alone: rings without log-sum-exp on a CPU, masks of a text per head
                yield {"model": name, "by": by, **case.facts(), "refused": str(error)}
                continue
            made = made._replace(ms=max(ranks.gathered(made.ms)))
            if by is None:
                alone[case] = made
            else:
                peaks = [ranks.gathered(each.peak_bytes) for each in (alone[dealt(case)], made)]
                yield {"model": name, "by": by, "devices": ranks.devices} | row(
                    case, alone, made, peaks
                )
        del model, inputs
        make_room()


def make_room() -> None:
    """Let go of a model that is no longer named, so that its memory counts for no other."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def built(name: str, args: argparse.Namespace) -> tuple[Any, Real]:
    """A model with the same weights each time."""
    real = MODELS[name]
    if args.layers:
        fewer = {"num_layers": args.layers}
        real = real._replace(config=real.config | fewer, tiny=real.tiny | fewer)
    torch.manual_seed(0)
    model = build(real, args.tiny)
    if model._cp_plan is None:
        sys.exit(f"diffusers has no context-parallel plan for {type(model).__name__} ({name})")
    return model, real


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Dense, then each preset; with heads that differ, dealt out by density and left in turn."""
    kinds = uneven_heads.kinds(args.uneven) if args.uneven else [None]
    presets = args.presets.split(",")
    return [Case()] + [
        Case(preset, kind, is_dealt)
        for kind in kinds
        for preset in presets
        for is_dealt in ((True, False) if kind else (True,))
    ]


def dealt(case: Case) -> Case:
    return case._replace(is_dealt=True)


def call(
    model: Any, real: Real, inputs: dict[str, Any], case: Case, args: argparse.Namespace
) -> Callable[[], Timed]:
    """Some steps; the time of those after the first two, on this device."""

    def work() -> Timed:
        settings: dict[str, Any] = {"min_tokens": 0}
        densities = case.heads and densities_of(model, case.heads)
        settings |= {"budgets": as_file(densities), "density": 0.25} if densities else {}
        parallel.WORTH = DEALT_FROM if case.is_dealt else 1e9
        session = vidsparse.sparsify(model, case.preset, **settings) if case.preset else None
        try:
            output, ms, peak = steps(model, real, inputs, args.steps)
        finally:
            if session:
                session.remove()
        return Timed(output, ms, session and session.stats, peak, densities or None)

    return work


def steps(
    model: Any, real: Real, inputs: dict[str, Any], number: int
) -> tuple[Tensor, float, int | None]:
    """What the last one made, the median milliseconds, and the most memory they took."""
    times, output = [], torch.empty(0)
    argument, full = real.timestep
    for step in range(number + WARM):
        if step == WARM and DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        level = torch.tensor([full * (0.6 - 0.02 * step)], device=DEVICE, dtype=real_sizes.DTYPE)
        if dist.is_initialized():
            dist.barrier()
        started = clock()
        output = model(
            **inputs,
            **{argument: level.expand(len(inputs["hidden_states"]))},
            return_dict=False,
        )[0]
        times.append(clock() - started)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
    return output, 1000 * median(times[WARM:]), peak


def row(
    case: Case, alone: dict[Case, Timed], together: Timed, peaks: list[list[Any]]
) -> dict[str, Any]:
    """Speedups over one device, and over one device dense; the error against one device."""
    one = alone[dealt(case)]
    error = (together.output.double() - one.output.double()).norm() / one.output.double().norm()
    found = {
        **case.facts(),
        "ms_on_one": one.ms,
        "ms": together.ms,
        "speedup": one.ms / together.ms,
        "speedup_over_one_dense": alone[Case()].ms / together.ms,
        "relative_error": float(error),
    }
    if DEVICE == "cuda":
        found |= {"peak_bytes_on_one": max(peaks[0]), "peak_bytes_by_device": peaks[1]}
    if together.stats is None:
        return found
    memory = (one.stats, together.stats)
    found |= {
        "density": together.stats.mean_density,
        "imbalance_by_step": list(together.stats.step_imbalance.values()),
        "memory_bytes": [each.memory_bytes for each in memory],
        "host_memory_bytes": [each.host_memory_bytes for each in memory],
        "fallbacks": dict(together.stats.fallbacks),
    }
    if together.densities:
        rounded = [[round(each, 4) for each in layer] for layer in together.densities]
        found["head_densities"] = rounded
    return found


def densities_of(model: Any, kind: str) -> uneven_heads.Densities:
    layers = len(find_model(model).layers(model))
    return uneven_heads.densities(kind, layers, model.config.num_attention_heads)


def as_file(densities: uneven_heads.Densities) -> Path:
    """A budgets file."""
    path = Path(tempfile.gettempdir()) / f"uneven_budgets_{os.getpid()}.json"
    path.write_text(json.dumps(dict(enumerate(densities))))
    return path


def ways(words: str) -> list[str]:
    """Of sharing the sequence, by comma; a ring last, since it changes what comes after it."""
    return sorted(words.split(","), reverse=True)


def share_the_sequence(model: Any, by: str, rank: int, devices: int) -> None:
    """As a user does it; by hand on a CPU, which diffusers does not take for a device.

    A ring needs an attention backend that diffusers then has for whatever comes later.
    """
    degree: dict[str, Any] = {f"{by}_degree": devices}
    config = ContextParallelConfig(**degree)
    if DEVICE == "cuda":
        if by == "ring":  # needs the log-sum-exp, which torch's own choice does not give
            model.set_attention_backend("_native_cudnn")
        model.enable_parallelism(config=config)
        return
    mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    config.setup(rank, devices, torch.device("cpu"), mesh)
    for module in model.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = ParallelConfig(context_parallel_config=config)
    apply_context_parallel(model, config, model._cp_plan)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="wan-14b-720p", help="of real_sizes.py, by comma")
    parser.add_argument("--presets", default="balanced,draft,radial")
    parser.add_argument(
        "--uneven", nargs="?", const=uneven_heads.MADE_UP, metavar="HEADS",
        help="heads that differ: made-up, trained, or a preset of the trained run, by comma",
    )  # fmt: skip
    parser.add_argument("--by", default=ULYSSES, help="ulysses, ring or both by comma")
    parser.add_argument("--layers", type=int, help="of the transformer, by default as listed there")
    parser.add_argument("--steps", type=int, default=3, help="timed calls")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if unknown := set(ways(args.by)) - {ULYSSES, RING}:
        parser.error(f"--by {args.by}: {unknown.pop()!r} is neither {ULYSSES} nor {RING}")
    return args


if __name__ == "__main__":
    main()
