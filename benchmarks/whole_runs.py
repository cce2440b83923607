"""Whole denoising runs on several GPUs that share the sequence, each of them first alone.

    torchrun --nproc-per-node 2 benchmarks/whole_runs.py wan2.1-14b --layers 1 --by ulysses,ring

What ``vidsparse bench pipeline`` measures on one device, with diffusers' own context parallelism:
stock diffusers, then, quantised and compiled where that is asked for, the best dense run and each
preset. The time is that of the slowest device, and what they make is held against what the same row
made alone. What some device cannot run is a row that says why. ``--tiny`` tries the script on CPUs.

In a session attention trades tokens for heads even where diffusers has a ring, so any dense engine
can serve: each device has all tokens of its heads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from context_parallel import RING, ULYSSES, make_room, share_the_sequence, ways
from ranks import Ranks, RefusedError

from vidsparse import sparsify
from vidsparse.bench import denoising, kernel_bench, real_size
from vidsparse.bench.denoising import Video
from vidsparse.bench.dense_engine import BEST_DENSE, dense_preset
from vidsparse.bench.real_size import RealSize
from vidsparse.comparison.baselines import time_dense_engines
from vidsparse.metrics.report.words import STOCK as OWN
from vidsparse.pipelines.running.checkpoints import find_checkpoint
from vidsparse.pipelines.running.compiling import compile_blocks
from vidsparse.pipelines.running.quantized import SAID, check_quantize, quantize_in_place
from vidsparse.pipelines.running.shapes import shapes_of
from vidsparse.pipelines.session import Session
from vidsparse.step_time import Shapes
from vidsparse.versions import versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
STOCK, ALONE = "stock", "alone"
SHOWN = (  # of a row, on the screen
    "mode", "preset", "engine", "seconds", "over_stock", "relative_error_to_alone", "compiled",
    "graphs_compiled", "mean_density", "refused",
)  # fmt: skip
WARM_DENSE = 2  # steps of the run before a dense one
Attach = Callable[[], AbstractContextManager[Any]]


@dataclass
class Bench:
    """One call of this script.

    Attributes:
        args: Its arguments.
        ranks: The processes that run it.
        record: What is written.
        alone: What each row made on one device.
    """

    args: argparse.Namespace
    ranks: Ranks
    record: dict[str, Any]
    alone: dict[str, torch.Tensor] = field(default_factory=dict)

    def measure(self, by: str | None) -> None:
        """All rows, on one device or, ``by`` Ulysses or a ring, on all of them."""
        mode = f"{by} on {self.ranks.devices}" if by else ALONE
        real, video, shapes = self._build(by)
        shared = {"mode": mode} | (
            {"attention_by": "ring" if by == RING else "heads"} if by else {}
        )
        plain = {**shared, "preset": STOCK, "compiled": False, "quantized": None}
        self._try(plain, real, video, nullcontext, WARM_DENSE)
        state = shared | ({"attention_by": "heads"} if by else {}) | self._change(real)
        for row, attach, warm in self._sessions(real, shapes, by):
            self._try(state | row, real, video, attach, warm)

    def _build(self, by: str | None) -> tuple[RealSize, Video, Shapes]:
        """The same weights each time: what is shared, quantised and compiled is so for good."""
        args = self.args
        checkpoint = find_checkpoint("tiny" if args.tiny else args.model)
        size = checkpoint.size(*((9, 96, 96) if args.tiny else ()))
        real = real_size.build(checkpoint, layers=args.layers, device=DEVICE, dtype=DTYPE)
        self.record |= {
            "layers": real.blocks, "of": real.all_blocks, "steps": args.steps or checkpoint.steps
        }  # fmt: skip
        if by is not None:
            for transformer in real.transformers():
                share_the_sequence(transformer, by, self.ranks.number, self.ranks.devices)
        guidance = checkpoint.guidance if checkpoint.takes_guidance else None
        grid = checkpoint.geometry.sequence(*(size[n] for n in ("frames", "height", "width")))
        return real, Video(**size, guidance=guidance), shapes_of(checkpoint, grid)

    def _change(self, real: RealSize) -> dict[str, Any]:
        for transformer in real.transformers():
            if self.args.quantize:
                quantize_in_place(transformer, self.args.quantize)
            if self.args.compile:
                compile_blocks(transformer, dynamic=False)
        return {"compiled": self.args.compile, "quantized": self.args.quantize}

    def _sessions(
        self, real: RealSize, shapes: Shapes, by: str | None
    ) -> Iterator[tuple[dict[str, Any], Attach, int]]:
        """What all rows but stock add to the record, how they begin, and steps before them."""
        times = self._time_engines(shapes, by)
        engine = min(times, key=lambda name: times[name])
        facts = {"preset": BEST_DENSE, "engine": engine, "engine_ms": times}
        yield facts, partial(Session, real.pipe, dense_preset(engine)), WARM_DENSE
        if engine != OWN and (sentence := self.record["rows"][-1].get("refused")):
            facts |= {"engine": OWN, "engine_refused": {engine: sentence}}
            yield facts, partial(Session, real.pipe, dense_preset(OWN)), WARM_DENSE
        more: dict[str, Any] = {} if DEVICE == "cuda" else {"min_tokens": 0}
        for name in self.args.presets.split(","):
            preset, _, precision = name.partition(":")
            precise = more | ({"precision": precision} if precision else {})
            yield {"preset": name}, partial(sparsify, real.pipe, preset, **precise), self.args.warm

    def _time_engines(self, shapes: Shapes, by: str | None) -> dict[str, float]:
        """Milliseconds of the slowest device, of those engines that every device has."""
        heads = -(-shapes.heads // self.ranks.devices) if by else shapes.heads
        shape = 1, shapes.tokens, heads, shapes.head_dim
        dtype = getattr(torch, DTYPE)
        here = self.ranks.attempt(lambda: time_dense_engines(shape, dtype, DEVICE))
        every = self.ranks.gathered(here)
        able = [name for name in here if all(name in times for times in every)]
        return {name: max(times[name] for times in every) for name in able}

    def _try(
        self, row: dict[str, Any], real: RealSize, video: Video, attach: Attach, warm: int
    ) -> None:
        """Measure a row; where some device refuses, all of them go on with the next one."""
        try:
            facts, latents = self._run(real, video, attach, warm)
        except RefusedError as error:
            if not self.record["rows"]:
                raise  # everything is held against stock on one device
            self._write(row | {"refused": str(error)})
            return
        first = self.record["rows"][0] if self.record["rows"] else facts
        row = row | facts | {"over_stock": first["seconds"] / facts["seconds"]}
        if row["mode"] == ALONE:
            self.alone[row["preset"]] = latents
        if (one := self.alone.get(row["preset"])) is not None:
            row["relative_error_to_alone"] = float((latents - one).norm() / one.norm())
        self._write(row)

    def _run(
        self, real: RealSize, video: Video, attach: Attach, warm: int
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """A short run builds what is built once; then the one that counts."""
        steps, attempt = self.record["steps"], self.ranks.attempt
        with attempt(attach) as session:
            first = attempt(lambda: denoising.run(real.pipe, video, min(warm, steps)))
            made = attempt(lambda: denoising.run(real.pipe, video, steps))
            facts = of_session(session) if session else {}
        peaks = self.ranks.gathered(made.peak_bytes)
        return {
            "seconds": max(self.ranks.gathered(made.seconds)),
            "warm_up_seconds": max(self.ranks.gathered(first.seconds)),
            "warm_up_graphs_compiled": max(self.ranks.gathered(first.graphs)),
            "step_seconds": made.step_seconds,
            "graphs_compiled": max(self.ranks.gathered(made.graphs)),
            "finite": bool(made.latents.isfinite().all()),
            "peak_bytes": max(peaks) if DEVICE == "cuda" else None,
            "peak_bytes_by_device": peaks if DEVICE == "cuda" else None,
            **facts,
        }, made.latents

    def _write(self, row: dict[str, Any]) -> None:
        self.record["rows"].append(row)
        if self.ranks.number:
            return
        print({name: value for name, value in row.items() if name in SHOWN}, flush=True)
        if self.args.output:
            self.args.output.parent.mkdir(parents=True, exist_ok=True)
            kernel_bench.write(self.args.output, self.record)


def of_session(session: Session) -> dict[str, Any]:
    stats = session.stats
    return {
        "mean_density": stats.mean_density,
        "engines": dict(stats.engines),
        "fallbacks": dict(stats.fallbacks),
    }


def main() -> None:
    args = parse()
    if args.quantize:
        check_quantize(args.quantize, DEVICE, DTYPE)
    ranks = Ranks.join()
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": versions(),
        "devices": ranks.devices, "model": "tiny" if args.tiny else args.model, "rows": [],
    }  # fmt: skip
    bench = Bench(args, ranks, record)
    for by in (None, *(ways(args.by) if ranks.devices > 1 else ())):
        bench.measure(by)
        make_room()
    ranks.leave()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="wan2.1-14b")
    parser.add_argument(
        "--presets", default="balanced,fast", help="each as NAME or NAME:PRECISION (fast:int8)"
    )
    parser.add_argument("--by", default=ULYSSES, help="of several: ulysses, ring or both by comma")
    parser.add_argument("--layers", type=int, help="of the transformer; by default all")
    parser.add_argument("--steps", type=int, help="by default the model's")
    parser.add_argument("--warm", type=int, default=6, help="steps of the run before each preset's")
    parser.add_argument("--compile", action="store_true", help="the blocks of all rows but stock")
    parser.add_argument("--quantize", choices=SAID, help="linear layers of all rows but stock")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if unknown := set(ways(args.by)) - {ULYSSES, RING}:
        parser.error(f"--by {args.by}: {unknown.pop()!r} is neither {ULYSSES} nor {RING}")
    return args


if __name__ == "__main__":
    main()
