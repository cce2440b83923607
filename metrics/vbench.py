"""VBench itself: the ``vbench`` package on our own clips.

The package pins libraries that cannot live beside ours, so it runs in a Python of its own, given
by the user. What it asks and answers is that of vbench 0.1.5. The scale and the totals are in
:mod:`vidsparse.metrics.vbench_scale`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.metrics.clips import RawFrames, as_array, check_length
from vidsparse.metrics.vbench_scale import DIMENSIONS, check_dimensions

# What the other Python runs. Its arguments come in a file, so no prompt meets a shell.
_DRIVER = """
import json, pathlib, sys
import torch, vbench
with open(sys.argv[1], encoding="utf-8") as file:
    request = json.load(file)
facts = pathlib.Path(vbench.__file__).with_name("VBench_full_info.json")
bench = vbench.VBench(torch.device(request["device"]), str(facts), request["output"])
bench.evaluate(
    videos_path=request["videos"], name="run", prompt_list=request["prompts"],
    dimension_list=request["dimensions"], local=True, mode="custom_input",
)
"""
_NO_NETWORK = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"),
    "http://127.0.0.1:9",  # nobody listens on the discard port
) | {"HF_HUB_OFFLINE": "1", "no_proxy": "", "NO_PROXY": ""}


@dataclass(frozen=True, slots=True)
class VBenchResults:
    """What vbench measured, every value between 0 and 1.

    Attributes:
        raw: Mean over videos, by dimension.
        videos: Value of each video, by dimension and file name.
    """

    raw: dict[str, float]
    videos: dict[str, dict[str, float]]


def run_vbench(
    python: Path,
    videos: Path,
    prompts: Mapping[str, str],
    dimensions: Sequence[str],
    output: Path,
    *,
    device: str = "cuda",
    download: bool = False,
) -> VBenchResults:
    """Run the ``vbench`` package of another Python on a folder of clips.

    Args:
        python: Interpreter of an environment with vbench.
        videos: Folder of ``.mp4`` files; :func:`write_lossless` makes such that change no pixel.
        prompts: What each file was generated from, by file name; every file needs one.
        dimensions: Those of :data:`DIMENSIONS` with ``own_prompts``.
        output: Folder for what vbench writes.
        device: Where it computes.
        download: Whether vbench may fetch the networks it misses. Otherwise it gets no network,
            and they must lie where it looks, ``~/.cache/vbench`` as a rule.

    Raises:
        BadInputError: When a path, a prompt or a dimension does not fit.
        VidsparseError: When vbench fails, or leaves a video out.
    """
    _check_request(python, videos, prompts, dimensions)
    output.mkdir(parents=True, exist_ok=True)
    results = output / "run_eval_results.json"
    results.unlink(missing_ok=True)
    request = output / "request.json"
    arguments = {
        "videos": str(videos.resolve()),
        "prompts": dict(prompts),
        "dimensions": list(dimensions),
        "output": str(output.resolve()),
        "device": device,
    }
    request.write_text(json.dumps(arguments), encoding="utf-8")
    command = [str(python.absolute()), "-c", _DRIVER, str(request.resolve())]
    env = os.environ | ({} if download else _NO_NETWORK)
    done = subprocess.run(
        command, cwd=output, env=env, capture_output=True, text=True, errors="replace", check=False
    )
    (output / "vbench.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode or not results.is_file():
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise VidsparseError(
            f"vbench ended with status {done.returncode} ({last}): see {output / 'vbench.log'}"
        )
    return read_results(results, dimensions, prompts)


def read_results(
    path: Path, dimensions: Sequence[str], videos: Sequence | Mapping
) -> VBenchResults:
    """Read a results file of vbench and average over videos.

    vbench's own averages are over videos or over frames, depending on the dimension and the number
    of GPUs; these are always over videos.

    Args:
        path: ``*_eval_results.json``.
        dimensions: Which it must hold.
        videos: The file names that each dimension must hold.

    Raises:
        VidsparseError: When a dimension or a video is missing.
    """
    measured = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, dict[str, float]] = {}
    for dimension in dimensions:
        _, rows = measured.get(dimension) or (None, [])
        scale = 100 if dimension == "imaging_quality" else 1
        found[dimension] = {Path(r["video_path"]).name: r["video_results"] / scale for r in rows}
        missing = set(videos) - found[dimension].keys()
        if missing:
            raise VidsparseError(
                f"vbench measured no {dimension} of {', '.join(sorted(missing))}: an average "
                f"without them would mislead, see {path.parent / 'vbench.log'}"
            )
    means = {name: sum(rows.values()) / len(rows) for name, rows in found.items()}
    return VBenchResults(means, found)


def write_lossless(path: Path, frames: RawFrames, fps: float) -> None:
    """Write raw frames as an ``.mp4`` from which vbench decodes the very same pixels.

    Args:
        path: Where to; H.264 in RGB, which few players show.
        frames: uint8 ``(frames, height, width, 3)``.
        fps: Frames per second. vbench's dynamic degree depends on it.
    """
    check_length(frames, 1, "a video")
    with av.open(path, "w") as container:
        rate = Fraction(fps).limit_denominator(65535)
        stream: Any = container.add_stream("libx264rgb", rate=rate, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            pixels: np.ndarray = as_array(frame)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _check_request(
    python: Path, videos: Path, prompts: Mapping[str, str], dimensions: Sequence[str]
) -> None:
    check_dimensions(dimensions)
    closed = [name for name in dimensions if not DIMENSIONS[name].own_prompts]
    if closed:
        raise BadInputError(
            f"vbench measures {', '.join(closed)} on its own prompts only: choose from "
            f"{', '.join(name for name, facts in DIMENSIONS.items() if facts.own_prompts)}"
        )
    if not python.is_file():
        raise BadInputError(f"there is no Python {python}: give that of an environment with vbench")
    present = {
        p.name for p in videos.glob("*") if p.suffix.lower() in {".mp4", ".gif", ".png", ".jpg"}
    }
    if not present or present != prompts.keys():
        differing = ", ".join(sorted(present ^ prompts.keys())) or "no video at all"
        raise BadInputError(
            f"prompts and videos of {videos} do not match ({differing}): name one prompt for "
            "each file"
        )
