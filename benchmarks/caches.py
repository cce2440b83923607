"""A cache that skips calls, sparsity, and both together: fidelity at equal time.

    python benchmarks/caches.py -o benchmarks/results/caches_h200.json

Clips of the shipped pipeline, drawn as one batch, so a cache decides once for all of them. Time is
what a run of Wan 2.1 14B at 720p would take on an H200: the blocks and the self-attention that ran
here, as shares of all, at the prices of ``vidsparse plan``. MagCache needs ratios of each model and
is left out.

``--joint`` tries rules that join the two: after steps that a cache skipped, a layer's call goes
only a share of its way from dense to full sparsity, so it is denser where more has changed. What
that costs is in the time; ``NAME@DENSITY`` in ``--presets`` takes it away elsewhere:

    python benchmarks/caches.py --caches first-block=0.1,taylorseer=2 --joint 1,0.7,0.4,0 \
        --presets balanced,balanced@0.3,balanced@0.4,fast
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from intervals import half_interval
from ladder import Studio, about, scores, write

import vidsparse
from vidsparse.call_cost import call_cost
from vidsparse.gpus import GPUS
from vidsparse.pipelines.running.caches import read_cache
from vidsparse.presets import PRESETS
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.step_time import Shapes, dense_step

WAN_14B = Shapes(
    tokens=75_600, layers=40, heads=40, head_dim=128, linear=40 * (6 + 2 * 2.7) * 5120**2
)
BLOCK = 128
CACHES = (
    "", "first-block=0.02", "first-block=0.05", "first-block=0.1", "taylorseer=2", "taylorseer=3",
)  # fmt: skip
SHIFT, STEPS = 5.0, 20


def main() -> None:
    args = parse()
    studio = Studio(args.size, args.prompts, args.seeds)
    dense = studio.clips(SHIFT, STEPS)
    record = about(args) | {"size": args.size, "cases": studio.cases, "rows": []}
    with counted(studio.pipe.transformer) as whole:
        studio.clips(SHIFT, STEPS)
    for preset in ("", *args.presets.split(",")):
        for cache in args.caches.split(",") if args.caches else CACHES:
            for share in args.joint.split(",") if preset and cache else ("1",):
                if preset or cache:
                    with denser_after_skips(float(share)):
                        made = row(studio, preset, cache, whole, dense, float(share))
                    record["rows"].append(made)
                    write(args.output, record)


@contextlib.contextmanager
def denser_after_skips(share: float) -> Iterator[None]:
    """After skipped steps, calls go so much of their way from dense; 1 changes nothing."""
    last: dict[Any, int] = {}
    plain = SparseAttention._way

    def way(self: SparseAttention, call: Call) -> float:
        where = call.expert, call.branch, call.sample, call.layer
        before, last[where] = last.get(where, call.step), call.step
        return plain(self, call) * (share if call.step > before + 1 else 1.0)

    SparseAttention._way = way
    try:
        yield
    finally:
        SparseAttention._way = plain


def row(
    studio: Studio, preset: str, cache: str, whole: Counter[str], dense: Any, share: float
) -> dict[str, Any]:
    transformer, density = studio.pipe.transformer, 1.0
    with contextlib.ExitStack() as stack:
        session = None
        if preset:
            name, _, asked = preset.partition("@")
            changes: dict[str, Any] = {"block": BLOCK, "min_tokens": 0}
            changes |= {"mean_density": float(asked)} if asked else {}
            session = stack.enter_context(vidsparse.sparsify(studio.pipe, name, **changes))
        if cache:
            read_cache(cache).enable(transformer, STEPS)
            stack.callback(transformer.disable_cache)
        made = stack.enter_context(counted(transformer))
        clips = studio.clips(SHIFT, STEPS)
        density = session.stats.mean_density if session else 1.0
    found = scores(clips, dense)
    shares = {name: made[name] / whole[name] for name in whole}
    facts = {
        "preset": preset or "dense", "cache": cache, "way_after_skips": share,
        "mean_density": density, "ran": shares,
        "gain": gain(preset, density, shares), "psnr": mean(found["psnr"]),
        "psnr_each": found["psnr"], "ssim": mean(found["ssim"]),
    }  # fmt: skip
    print(
        f"{facts['preset']:13s} {cache:18s} after skips {share:g} blocks {shares['ffn']:.2f} "
        f"attention {shares['to_q']:.2f} density {density:.3f} gain {facts['gain']:.2f}x "
        f"psnr {facts['psnr']:.2f} +- {half_interval(found['psnr']):.2f} ssim {facts['ssim']:.3f}",
        flush=True,
    )
    return facts


@contextlib.contextmanager
def counted(transformer: Any) -> Iterator[Counter[str]]:
    """How often the feed-forward part of a block ran, and its self-attention."""
    calls: Counter[str] = Counter()
    hooks = []
    for block in transformer.blocks:
        for name, module in (("ffn", block.ffn), ("to_q", block.attn1.to_q)):
            add = lambda *_, name=name: calls.update([name])  # noqa: E731
            hooks.append(module.register_forward_hook(add))
    yield calls
    for hook in hooks:
        hook.remove()


def gain(preset: str, density: float, shares: dict[str, float]) -> float:
    """Of a run of Wan 14B over a dense one without cache."""
    step = dense_step(WAN_14B, GPUS["h200"])
    attention = step.attention
    if preset:
        cost = call_cost(PRESETS[preset.partition("@")[0]], BLOCK)
        attention *= cost.start + cost.slope * density
        attention += 1e-3 * cost.fixed * WAN_14B.layers * WAN_14B.samples
    return step.seconds / (step.rest * shares["ffn"] + attention * shares["to_q"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="balanced,fast")
    parser.add_argument("--caches", default="", help="as --cache takes them, separated by commas")
    parser.add_argument("--joint", default="1", help="shares of the way after skipped steps")
    parser.add_argument("--size", default="49x256x256")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
