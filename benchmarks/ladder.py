"""Which method is best at equal time: fidelity of the shipped pipeline over predicted minutes.

    python benchmarks/ladder.py quality -o quality.json      # PSNR, SSIM, temporal error of clips
    python benchmarks/ladder.py calls -o calls.json          # time of one call at real shapes
    python benchmarks/ladder.py table quality.json calls.json whole_run_wan-14b.json

``quality`` draws the same clips with every candidate at every mean density, beside dense ones of
the same noise. ``calls`` times one attention call of each in a session's engine, planning included
and shared by two guidance branches, at the shapes of real models. ``table`` puts the two together:
fidelity against the predicted time of a whole Wan-14B run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from intervals import half_interval
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidsparse
from vidsparse.grid import TokenGrid
from vidsparse.metrics.fidelity import fidelity
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.policies.semantic import Semantic
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.stats import Stopwatch

GUIDANCE = 4.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
PROMPTS = [
    "a red circle moving right over a light blue striped background",
    "a yellow star moving up over a dark purple dotted background",
    "a large green triangle bouncing over a checkered gray background",
    "a pink square circling over a plain dark blue background",
    "a small white heart spinning over a dark green cloudy background",
    "a cyan ring falling over a light orange wavy background",
    "an orange moon swaying over a striped dark gray background",
    "a large blue cross growing over a light yellow checkered background",
]
MEANS: dict[str, Any] = {"estimator": "routing", "compensation": "centroid"}
TILES: dict[str, Any] = {"preset": "balanced", "block": 128}
TILES_64: dict[str, Any] = {"preset": "balanced", "block": 64}
DRAFT: dict[str, Any] = {"preset": "draft", "block": 128}
DRAFT_64: dict[str, Any] = {"preset": "draft", "block": 64}
CLUSTERS: dict[str, Any] = {"preset": "semantic", "clusters": (200, 1000), "ramp_until": 0.3}

RUNG: dict[str, Any] = {"preset": "semantic", "block": 128}
RAGGED: dict[str, Any] = RUNG | {"fill_tiles": False}

WHOLE_RUN = 20  # steps
NO_DIAL = {"quality", "fast", "turbo", "lite", "lite-attention"}  # rungs of others, or no dial
PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "corrected": {"correction": "delta"},
    "2 layers share": {"share_layers": 2},
    "2 scoring heads": {"scoring_heads": 2},
    "keys by importance": {"order": "importance"},
}


def ramp(until: float, warmup: float = 0.05) -> dict[str, Any]:
    return {"warmup": warmup, "ramp_until": until}


def mean_of(density: float) -> dict[str, Any]:
    return {"mean_density": density}


def curves(families: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each at three mean densities, under the ramps that these bring."""
    return {
        f"{name} {density:g}": parts | mean_of(density) | ramp(until)
        for density, until in ((0.35, 0.3), (0.25, 0.2), (0.15, 0.1))
        for name, parts in families.items()
    }


WHOLE: dict[str, Any] = {"correction": "delta"}
AGREED: dict[str, Any] = WHOLE | {"exact_gain": "agreed", "exact_at": "middle"}
NONE: dict[str, Any] = {"correction": "none"}
PUBLISHED = WHOLE | {"exact_every": 64, "exact_at": "first", "exact_gain": "whole"}
LENGTHY: dict[str, dict[str, Any]] = {  # what can be put on a preset, on a long sequence
    "as it is": {},
    "uncorrected": NONE,
    "delta": PUBLISHED,
    "delta, agreed": AGREED | {"exact_every": 128},
    "twilight": {"selector": "refined"},
    "proxyattn": {"estimator": "strided_peak", "scoring_heads": 4},
    "4 scoring heads": {"scoring_heads": 4},
    "permuted": {"order": "importance"},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "tiles 128": TILES | NONE,
    "tiles 128, agreed": TILES | AGREED,
    "tiles 128, agreed, of 128": TILES | AGREED | {"exact_every": 128},
    "draft 128": DRAFT,
    "draft 128, whole": DRAFT | WHOLE,
    "draft 128, agreed": DRAFT | AGREED,
    "clusters": CLUSTERS | NONE,
    "clusters, whole": CLUSTERS | WHOLE,
    "clusters, agreed": CLUSTERS | AGREED,
    "clusters, agreed, of 128": CLUSTERS | AGREED | {"exact_every": 128},
    "clusters 100 x 500": CLUSTERS | NONE | {"clusters": (100, 500)},
    "clusters 100 x 500, agreed": CLUSTERS | AGREED | {"clusters": (100, 500)},
}
COUNTS: dict[str, dict[str, Any]] = {
    f"clusters {q} x {k}": CLUSTERS | {"clusters": (q, k)}
    for q, k in (
        (200, 1000), (600, 500), (600, 700), (600, 1000), (800, 500), (800, 700), (800, 1000),
        (1000, 500), (1000, 1000), (1400, 1000),
    )
} | {
    "boxes x 1000": CLUSTERS | {"sides": "keys", "block": 128},
    "clusters 600 x 1000, 8 iterations": CLUSTERS | {"clusters": (600, 1000), "iterations": 8},
    "clusters 600 x 1000, 2 iterations": CLUSTERS | {"clusters": (600, 1000), "iterations": 2},
}  # fmt: skip


def at_length(name: str) -> dict[str, Any]:
    """A preset as it is on a long sequence: blocks of 128, clusters of as many tokens as there."""
    preset = vidsparse.PRESETS[name]
    order = preset.policy.order
    if isinstance(order, Semantic) and not order.counts_blocks:
        return {"preset": name, "clusters": (order.q_clusters, order.kv_clusters)}
    if "most_gigabytes" in preset.parameters():  # of Wan 14B it would be more than is allowed
        return {"preset": name, "most_gigabytes": 64.0, "replan": WHOLE_RUN}
    return {"preset": name} | ({"block": 128} if "block" in preset.parameters() else {})


SETS: dict[str, dict[str, dict[str, Any]]] = {
    "presets at length": {
        name: at_length(name) for name in vidsparse.PRESETS if name not in NO_DIAL
    },
    "counts": COUNTS,
    "calls": {
        "tiles 128": TILES,
        "clusters": CLUSTERS,
        "draft 128": DRAFT,
        "tiles 128, means": TILES | MEANS,
        "tiles 64": TILES_64,
    },
    "methods": {
        name: {"preset": name}
        for name in ("auto", "semantic", "balanced", "draft", "svg2-ear", "random")
    },
    "curves": {
        f"{name} {density:g}": parts | mean_of(density) | ramp(until)
        for density, until in ((0.35, 0.3), (0.25, 0.2), (0.15, 0.1), (0.45, 0.3), (0.55, 0.3))
        for name, parts in {
            "tiles 128": TILES,
            "clusters": CLUSTERS,
            "draft 128": DRAFT,
            "tiles 128, means": TILES | MEANS,
            "tiles 64": TILES_64,
            "draft 64": DRAFT_64,
        }.items()
        if density <= 0.35 or name in ("tiles 128", "clusters")
    },
    "schedules": {
        "tiles .35, ramp .2": TILES | mean_of(0.35) | ramp(0.2),
        "tiles .35, ramp .45": TILES | mean_of(0.35) | ramp(0.45),
        "tiles .35, warm-up .1": TILES | mean_of(0.35) | ramp(0.3, 0.1),
        "tiles .25, ramp .3": TILES | mean_of(0.25) | ramp(0.3),
        "tiles .25, ramp .1": TILES | mean_of(0.25) | ramp(0.1),
        "tiles .15, ramp .05": TILES | mean_of(0.15) | ramp(0.05),
        "clusters .25, ramp .3": CLUSTERS | mean_of(0.25) | ramp(0.3),
    },
    "presets": {name: {"preset": name} for name in vidsparse.PRESETS if name not in NO_DIAL}
    | {"re-ttention": {"preset": "re-ttention", "replan": WHOLE_RUN}},  # else dense at each fifth
    "parts": {
        f"{name}, {part}": {"preset": name} | changes
        for name in ("draft", "balanced", "semantic")
        for part, changes in PARTS.items()
        if name != "semantic" or part in ("as it is", "corrected", "2 layers share")
    },
    "parts at length": {
        f"{name}, {part}": {"preset": name, "block": 128} | LENGTHY[part]
        for name, parts in {
            "draft": [part for part in LENGTHY if part != "uncorrected"],  # it is
            "semantic": ["as it is", "uncorrected", "delta"],  # each head has clusters of its own
        }.items()
        for part in parts
    },
    "corrections": CORRECTIONS,
    "corrections, curves": curves(CORRECTIONS),
    "corrected rungs": {
        f"{name}{said}": {"preset": name, "block": 128} | changes
        for said, changes in ((", uncorrected", NONE), ("", {}), (", of 256", {"exact_every": 256}))
        for name in ("balanced", "fast", "turbo")
    },
    "short": {  # in the blocks that sequences so short have
        f"{name}{said}": {"preset": name} | changes
        for said, changes in ((", uncorrected", NONE), ("", {}))
        for name in ("balanced", "fast")
    },
    "rungs": {  # in blocks, and clusters, of as many tokens as in a long sequence
        name: {"preset": name, "block": 128}
        for name in ("quality", "semantic", "balanced", "fast", "turbo")
    },
    "rung calls": {
        f"{name}{said}": parts | precision
        for said, precision in (("", {}), (", int8", {"precision": "int8"}))
        for name, parts in {
            "boxes": TILES,
            "clusters": RUNG,
            "clusters, ragged": RAGGED,
            "clusters 200 x 1000": RUNG | {"clusters": (200, 1000)},
        }.items()
    },
    "filled": {
        f"{name} {density:g}": parts | mean_of(density)
        for density in (0.25, 0.15)
        for name, parts in {"semantic": RUNG, "ragged": RAGGED}.items()
    },
    "replans": {  # how long plans of clusters are kept
        f"semantic, replan {number}": RUNG | {"replan": number} for number in (1, 2, 3, 4, 6, 8)
    },
    "auto": {  # as it was, and with the clusters of the ladder, in as many tokens as on Wan
        "before": {
            "preset": "auto",
            "clusters": (200, 1000),
            "start": "tokens",
            "first_iterations": 50,
            "iterations": 2,
            "fill_tiles": False,
        }
        | NONE,
        "auto": {"preset": "auto", "block": 128},
        "semantic": RUNG,
    },
    "precision": {
        f"{name}, {precision}": parts | {"precision": precision}
        for name, parts in {
            "dense": {"preset": "draft", "block": 128, "density": 1.0},
            "balanced": {"preset": "balanced", "block": 128},
            "balanced .45": TILES | mean_of(0.45) | ramp(0.3),
            "fast": {"preset": "fast", "block": 128},
            "semantic": {"preset": "semantic", "block": 128},
            "quality": {"preset": "quality", "block": 128},
            "clusters": CLUSTERS | NONE,  # without exact rows, for timing calls
        }.items()
        for precision in ("model", "int8")
    },
    "boxes": {  # of 128 tokens, frames x height x width
        f"boxes {f}x{h}x{w}": TILES | {"tile_frames": f, "tile_height": h, "tile_width": w}
        for f, h, w in ((1, 8, 16), (2, 8, 8), (4, 4, 8), (8, 4, 4))
    },
    "clusters": curves(COUNTS),  # how many, of queries and of keys
    "shift 3": {  # before: dense above sigma .95, full below .8, blocks of 64
        "before .45": TILES_64 | mean_of(0.45) | ramp(0.45, 0.15),
        "before .35": TILES_64 | mean_of(0.35) | ramp(0.45, 0.15),
        "quality": {"preset": "quality"},
        "balanced": {"preset": "balanced"},
        "fast": {"preset": "fast"},
        "turbo": {"preset": "turbo"},
    },
    "shift 12": {
        "before .6": TILES_64 | mean_of(0.6) | ramp(0.75, 0.4),
        "tiles 64 .6": TILES_64 | mean_of(0.6) | ramp(0.3),
        "quality": {"preset": "quality"},
        "balanced": {"preset": "balanced"},
        "fast": {"preset": "fast"},
        "turbo": {"preset": "turbo"},
    },
}
LONG = 75_600  # tokens that clusters are numbered for; on fewer, each is of as many tokens


class Shape(NamedTuple):
    """The self-attention of a model at the size it is used."""

    grid: TokenGrid
    heads: int
    head_dim: int


SHAPES = {
    "wan-14b-720p": Shape(TokenGrid(21, 45, 80), 40, 128),
    "wan-1.3b-480p": Shape(TokenGrid(21, 30, 52), 12, 128),
    "hunyuanvideo-720p": Shape(TokenGrid(33, 45, 80, suffix=256), 24, 128),
    "cogvideox-5b": Shape(TokenGrid(13, 30, 45, prefix=226), 48, 64),
    "flux-4k": Shape(TokenGrid(1, 256, 256, prefix=512), 24, 128),
}


def main() -> None:
    args = parse()
    {"quality": quality, "calls": calls, "table": table}[args.what](args)


def chosen(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = SETS[args.set]
    return {name: found[name] for name in (args.only.split(";") if args.only else found)}


def changes_of(candidate: dict[str, Any], tokens: int, **more: Any) -> tuple[str, dict[str, Any]]:
    """A preset and its changes, with clusters of as many tokens as on a long sequence."""
    changes = dict(candidate)
    preset, clusters = changes.pop("preset"), changes.pop("clusters", None)
    if clusters:
        queries, keys = (max(1, round(number * tokens / LONG)) for number in clusters)
        changes |= {"kv_clusters": keys}
        if changes.get("sides") != "keys":
            changes |= {"q_clusters": queries}
    return preset, changes | more


class Studio:
    """Draws all clips of a setting as one batch."""

    def __init__(self, size: str, prompts: int, seeds: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        pipe: Any = DiffusionPipeline.from_pretrained(TINY, use_safetensors=True, torch_dtype=DTYPE)
        self.pipe = pipe.to(DEVICE)
        self.pipe.set_progress_bar_config(disable=True)
        frames, height, width = (int(n) for n in size.split("x"))
        self.size = {"num_frames": frames, "height": height, "width": width}
        self.cases = [(p, s) for s in range(seeds) for p in PROMPTS[:prompts]]

    def clips(self, shift: float, steps: int) -> np.ndarray:
        """Frames, uint8 ``(clips, frames, height, width, 3)``."""
        pipe = self.pipe
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=shift)
        frames = pipe(
            [prompt for prompt, _ in self.cases],
            **self.size,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for _, seed in self.cases],
        ).frames
        return (frames * 255).round().astype("uint8")


def quality(args: argparse.Namespace) -> None:
    """Every candidate at every mean density, in every setting."""
    studio, started = Studio(args.size, args.prompts, args.seeds), time.perf_counter()
    record = about(args) | {"size": args.size, "cases": studio.cases, "floors": {}, "rows": []}
    for setting in args.settings.split(","):
        shift, steps = (float(n) for n in setting.split("x"))
        dense = studio.clips(shift, int(steps))
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
            again = studio.clips(shift, int(steps))
        floor = mean(scores(again, dense)["psnr"])
        record["floors"][setting] = floor
        print(f"shift {shift:g}, {steps:g} steps: dense against dense {floor:.1f} dB", flush=True)
        levels = [float(text) for text in args.levels.split(",")]
        schedules = [json.loads(args.schedule)] * len(levels)
        if args.ramps:
            ramps = [float(text) for text in args.ramps.split(",")]
            schedules = [schedules[0] | {"ramp_until": until} for until in ramps]
        for level, schedule in zip(levels, schedules, strict=True):
            for name, candidate in chosen(args).items():
                if time.perf_counter() - started > args.seconds:
                    break
                row = {"candidate": name, "setting": setting, "asked": level}
                row |= drawn(studio, candidate, schedule, shift, int(steps), level, dense)
                record["rows"].append(row)
                show(row)
                write(args.output, record)


def drawn(
    studio: Studio, candidate: dict[str, Any], schedule: dict[str, Any], shift: float, steps: int,
    level: float, dense: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """One row: what a candidate's clips are like."""
    frames, height, width = studio.size.values()
    tokens = ((frames - 1) // 4 + 1) * (height // 8) * (width // 8)
    more = {"mean_density": level} if level else {}
    preset, changes = changes_of(candidate, tokens, min_tokens=0, **more)
    start = time.perf_counter()
    try:
        with vidsparse.sparsify(studio.pipe, preset, **(schedule | changes)) as session:
            clips = studio.clips(shift, steps)
            stats = session.stats
    except vidsparse.BadInputError as error:
        return {"error": str(error)}
    found = scores(clips, dense)
    return {
        "settings": {"preset": preset} | schedule | changes,
        "mean_density": stats.mean_density,
        "dense_steps_share": stats.dense_steps_share,
        "fallbacks": dict(stats.fallbacks),
        "seconds": time.perf_counter() - start,
        **{name: mean(each) for name, each in found.items()},
        "psnr_each": found["psnr"],
    }


def scores(clips: np.ndarray, dense: np.ndarray) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "temporal": []}
    for pair in zip(clips, dense, strict=True):
        ours, theirs = (torch.from_numpy(x).to(DEVICE) for x in pair)  # a host of many cores stalls
        score = fidelity(ours, theirs)
        found["psnr"].append(min(score.psnr, 99.0))
        found["ssim"].append(score.ssim)
        change, true = (x.float().diff(dim=0) for x in (ours, theirs))
        found["temporal"].append(float((change - true).abs().mean()))
    return found


def show(row: dict[str, Any]) -> None:
    name = f"{row['candidate']:28s} {row['setting']:6s} {row['asked']:.2f}"
    if "error" in row:
        print(f"{name} {row['error']}", flush=True)
        return
    half = half_interval(row["psnr_each"])
    print(
        f"{name} realised {row['mean_density']:.3f} psnr {row['psnr']:5.2f} +- {half:.2f} "
        f"ssim {row['ssim']:.3f} temporal {row['temporal']:.2f} {row['seconds']:.1f} s"
        f"{' ' + str(row['fallbacks']) if row['fallbacks'] else ''}",
        flush=True,
    )


def calls(args: argparse.Namespace) -> None:
    """Time of an attention call at full sparsity, by candidate, shape and density."""
    record = about(args) | {"dense": {}, "rows": []}
    for name in args.shapes.split(","):
        shape = SHAPES[name] if DEVICE == "cuda" else Shape(TokenGrid(5, 16, 16), 2, 64)
        torch.manual_seed(0)
        size = (1, shape.grid.tokens, shape.heads, shape.head_dim)
        branches = [
            [torch.randn(size, device=DEVICE, dtype=DTYPE) for _ in "qkv"] for _ in range(2)
        ]
        record["dense"][name] = timed_dense(branches)
        print(f"{name}: dense {record['dense'][name]:.2f} ms", flush=True)
        for candidate, settings in chosen(args).items():
            for density in (float(text) for text in args.densities.split(",")):
                row = {"candidate": candidate, "shape": name, "density": density}
                try:
                    row |= timed(settings, shape, branches, density, args.steps)
                except (vidsparse.VidsparseError, torch.OutOfMemoryError, AssertionError) as error:
                    print(f"  {candidate:28s} {error}", flush=True)  # by a tolerance, too large
                    continue
                record["rows"].append(row)
                print(
                    f"  {candidate:28s} {density:.2f} call {row['ms']:7.2f} ms, planning "
                    f"{row['plan_ms']:6.2f} ms, {row['ms'] / record['dense'][name]:.3f} of dense, "
                    f"realised {row['realised']:.3f} {row['engines']}",
                    flush=True,
                )
                write(args.output, record)


def timed_dense(branches: list[list[torch.Tensor]]) -> float:
    q, k, v = (x.transpose(1, 2) for x in branches[0])
    backend = SDPBackend.CUDNN_ATTENTION if DEVICE == "cuda" else SDPBackend.MATH
    with sdpa_kernel(backend):
        return median(clock(lambda: F.scaled_dot_product_attention(q, k, v)) for _ in range(4))


def clock(function: Any) -> float:
    """Milliseconds, waited for."""
    with Stopwatch(torch.device(DEVICE)) as watch:
        function()
    return 1000 * watch.seconds


def timed(
    candidate: dict[str, Any], shape: Shape, branches: list[list[torch.Tensor]], density: float,
    steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Mean over two branches and some steps, after as many of warm-up; the host does not wait.

    The steps are whole cycles of one that plans and those that use its plan again. What has a
    tolerance for a density gets that number as its tolerance.
    """
    dial = vidsparse.PRESETS[candidate["preset"]].policy.in_place_of_density or "density"
    name, changes = changes_of(
        candidate,
        shape.grid.tokens,
        warmup=0.0,
        ramp_until=0.0,
        dense_layers=0,
        min_tokens=0,
        **{dial: density},
    )
    preset = vidsparse.PRESETS[name].override(changes)
    cycle = min(preset.schedule.replan, WHOLE_RUN)
    steps = math.ceil(steps / cycle) * cycle
    engine = SparseAttention(preset, strict=True)
    run = Progress.first(2 * steps)

    def no_dense(*qkv: Any) -> Any:
        raise AssertionError("a call ran dense")

    found: list[Stopwatch] = []
    for at, progress in enumerate(run.steps()):
        if at == steps:
            found.clear()
            engine.stats.start_generation()
            if cycle == WHOLE_RUN:  # what it does once a run is a part of it
                engine = SparseAttention(preset, strict=True)
        for branch, (q, k, v) in enumerate(branches):
            call = Call(
                grid=shape.grid, layer=0, step=at, branch=str(branch), progress=progress, layers=40
            )
            with Stopwatch(q.device) as watch:
                engine(q, k, v, call, no_dense)
            found.append(watch)
    each, number = [1000 * watch.seconds for watch in found], 2 * steps
    return {
        "ms": mean(each),
        "plan_ms": 1000 * engine.stats.plan_seconds / number,
        "each_ms": each,
        "realised": engine.stats.mean_density,
        "engines": dict(engine.stats.engines),
        "settings": {"preset": name} | changes,
        "peak_bytes": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None,
    }


def about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor(),
        "dtype": str(DTYPE),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "vidsparse": vidsparse.__version__,
        },
    }


def write(path: Path | None, record: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def table(args: argparse.Namespace) -> None:
    """Fidelity over the predicted time of a whole Wan-14B run, as a ratio to stock diffusers.

    A layer of the whole run takes what it takes besides attention, and attention by the line
    through a candidate's timed calls, at the densities of its clips. Candidates of ``quality`` are
    named after those of ``calls``, with a mean density behind.
    """
    quality_of, calls_of, whole = (json.loads(path.read_text()) for path in args.files)
    timed_lines = dict(lines(calls_of, "wan-14b-720p"))
    dense = calls_of["dense"]["wan-14b-720p"]
    stock = whole["rows"][0]["ms_a_layer"]
    print("| mean density | candidate | whole run | PSNR, dB | SSIM | temporal error |")
    print("|---|---|---|---|---|---|")
    for row in quality_of["rows"]:
        family = row["candidate"].rsplit(" ", 1)[0]
        if "error" in row or family not in timed_lines:
            continue
        ms = layer_ms(row, timed_lines[family], dense, stock)
        half = half_interval(row["psnr_each"])
        print(
            f"| {row['mean_density']:.2f} | {family} | {stock / ms:.2f}x "
            f"| {row['psnr']:.1f} +- {half:.1f} | {row['ssim']:.3f} | {row['temporal']:.2f} |"
        )


def layer_ms(row: dict[str, Any], line: tuple[float, float], dense: float, stock: float) -> float:
    """Milliseconds of a layer of the whole run, mean of its steps, with a row's clips' densities.

    Args:
        row: Of ``quality``.
        line: Of its calls: milliseconds at density 0, and what density 1 adds.
        dense: A dense call's milliseconds.
        stock: A layer's, unmodified.
    """
    start, slope = line
    share = row["dense_steps_share"]
    sparse = (row["mean_density"] - share) / (1 - share)
    return stock - dense + share * dense + (1 - share) * (start + slope * sparse)


def lines(record: dict[str, Any], shape: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of each candidate, milliseconds of a call at density 0, and what density 1 adds.

    A candidate to which a density says nothing on data that are random, or which was timed at one,
    has the slope of ``random``.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in record["rows"]:
        if row["shape"] == shape:
            found.setdefault(row["candidate"], []).append((row["realised"], row["ms"]))
    plain = slope_of(found["random"]) if "random" in found else None
    for name, points in found.items():
        slope = slope_of(points)
        slope = plain if slope is None else slope
        if slope is not None:
            yield name, (points[0][1] - slope * points[0][0], slope)


def slope_of(points: list[tuple[float, float]]) -> float | None:
    """Milliseconds that a density of 1 adds to one of 0; None where the points are one."""
    (first, fast), (last, slow) = points[0], points[-1]
    return (slow - fast) / (last - first) if abs(last - first) > 0.01 else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("quality", "calls", "table"))
    parser.add_argument("files", type=Path, nargs="*", help="of table: quality, calls, whole run")
    parser.add_argument("--only", default="", help="some candidates, separated by semicolons")
    parser.add_argument("--set", choices=SETS, default="calls", help="of candidates")
    parser.add_argument("--size", default="49x256x256")
    parser.add_argument("--levels", default="0", help="mean densities; 0 is a candidate's own")
    parser.add_argument("--settings", default="5x20", help="SHIFTxSTEPS, separated by commas")
    parser.add_argument("--schedule", default="{}", help="JSON of schedule parameters")
    parser.add_argument("--ramps", default="", help="ramp_until of each of the levels")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shapes", default="wan-14b-720p")
    parser.add_argument("--densities", default="0.15,0.35")
    parser.add_argument("--steps", type=int, default=4, help="of calls: that are timed")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after this time")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
