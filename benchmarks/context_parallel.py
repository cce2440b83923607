"""What a second GPU gains: one forward call on one device and on all, dense and sparse.

    torchrun --nproc-per-node 2 benchmarks/context_parallel.py -o benchmarks/results/two_gpus.json
    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --tiny    # on a CPU: that it runs

Random weights, as in ``real_sizes.py``, whose models these are. Every device first runs the whole
model by itself, then all of them share the sequence; the outputs have to agree. All heads of random
weights are alike: ``--uneven`` gives them densities from 0.05 to 0.45, one after another, and runs
each preset with heads dealt out by their density and, beside it, left in turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import real_sizes
import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from real_sizes import DEVICE, MODELS, build, clock
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import vidsparse
from vidsparse.bench import kernel_bench
from vidsparse.pipelines import parallel
from vidsparse.pipelines.models import find_model

WARM = 2  # steps
LEAST, MOST = 0.05, 0.45  # density of a head
IN_TURN = ", heads in turn"
DEALT_FROM = parallel.WORTH


class Timed(NamedTuple):
    output: Tensor
    ms: float
    stats: Any


@torch.inference_mode()
def main() -> None:
    args = parse()
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    rank, devices = dist.get_rank(), dist.get_world_size()
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    rows: list[dict[str, Any]] = []
    for name in args.models.split(","):
        torch.manual_seed(0)
        model, real = build(MODELS[name], args.tiny), MODELS[name]
        if model._cp_plan is None:
            sys.exit(f"diffusers has no context-parallel plan for {type(model).__name__} ({name})")
        inputs = real.inputs(real_sizes.TINY_SCALE if args.tiny else 1.0, model.config)
        presets = [None, *args.presets.split(",")]
        alone = {preset: timed(model, real, inputs, preset, args) for preset in presets}
        share_the_sequence(model, args, rank, devices)
        if args.uneven:
            presets += [preset + IN_TURN for preset in presets if preset]
        for preset in presets:
            try:
                together = timed(model, real, inputs, preset, args)
            except (RuntimeError, ValueError) as error:
                if preset:
                    raise
                # diffusers alone: rings without log-sum-exp on a CPU, masks of a text per head
                rows.append({"model": name, "preset": "dense", "refused": str(error)})
            else:
                rows.append(row(name, preset, devices, alone, together))
            if rank == 0:
                print(rows[-1], flush=True)
        del model
        gc.collect()
    if rank == 0 and args.output:
        what = f"medians of {args.steps} forward calls after {WARM}, of the slowest device"
        kernel_bench.write(args.output, kernel_bench.record(rows, " ".join(sys.argv), what))
    dist.destroy_process_group()


def timed(model: Any, real: Any, inputs: dict[str, Any], preset: str | None, args: Any) -> Timed:
    """Some steps; the time of those after the first two, on the slowest device."""
    settings: dict[str, Any] = {"min_tokens": 0}
    settings |= {"budgets": uneven_budgets(model), "density": 0.25} if args.uneven else {}
    in_turn = preset is not None and preset.endswith(IN_TURN)
    parallel.WORTH = 1e9 if in_turn else DEALT_FROM
    name = preset and preset.removesuffix(IN_TURN)
    session = vidsparse.sparsify(model, name, **settings) if name else None
    times, output = [], torch.empty(0)
    argument, full = real.timestep
    for step in range(args.steps + WARM):
        level = torch.tensor([full * (0.6 - 0.02 * step)], device=DEVICE, dtype=real_sizes.DTYPE)
        dist.barrier()
        started = clock()
        output = model(
            **inputs,
            **{argument: level.expand(len(inputs["hidden_states"]))},
            return_dict=False,
        )[0]
        times.append(clock() - started)
    if session:
        session.remove()
    slowest = torch.tensor(median(times[WARM:]), device=DEVICE, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return Timed(output, 1000 * float(slowest), session.stats if session else None)


def row(
    name: str, preset: str | None, devices: int, alone: dict[Any, Timed], together: Timed
) -> dict[str, Any]:
    """Speedups over one device, and over one device dense; the error against one device."""
    one = alone[preset and preset.removesuffix(IN_TURN)]
    error = (together.output.double() - one.output.double()).norm() / one.output.double().norm()
    found = {
        "model": name,
        "preset": preset or "dense",
        "devices": devices,
        "ms_on_one": one.ms,
        "ms": together.ms,
        "speedup": one.ms / together.ms,
        "speedup_over_one_dense": alone[None].ms / together.ms,
        "relative_error": float(error),
    }
    if together.stats is None:
        return found
    memory = (one.stats, together.stats)
    return found | {
        "density": together.stats.mean_density,
        "imbalance_by_step": list(together.stats.step_imbalance.values()),
        "memory_bytes": [each.memory_bytes for each in memory],
        "host_memory_bytes": [each.host_memory_bytes for each in memory],
        "fallbacks": dict(together.stats.fallbacks),
    }


def uneven_budgets(model: Any) -> Path:
    """A file in which the heads of every layer have densities that rise one after the other."""
    heads = model.config.num_attention_heads
    each = torch.linspace(LEAST, MOST, heads).tolist()
    layers = len(find_model(model).layers(model))
    path = Path(tempfile.gettempdir()) / f"uneven_budgets_{dist.get_rank()}.json"
    path.write_text(json.dumps({str(layer): each for layer in range(layers)}))
    return path


def share_the_sequence(model: Any, by: str, rank: int, devices: int) -> None:
    """As a user does it; by hand on a CPU, which diffusers does not take for a device."""
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
    parser.add_argument("--uneven", action="store_true", help="heads that differ")
    parser.add_argument("--by", choices=["ulysses", "ring"], default="ulysses")
    parser.add_argument("--steps", type=int, default=3, help="timed calls")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything is put there
    main()
