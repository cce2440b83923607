"""vidsparse: sparse attention for diffusers pipelines, unmodified, reversible and measured.

Wrap a pipeline in one line; leaving the block restores it::

    with vidsparse.sparsify(pipe, "balanced") as session:
        video = pipe(prompt).frames[0]
    print(session.summary())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vidsparse.errors import BadInputError, DenseFallbackError, VidsparseError
from vidsparse.grid import TokenGrid
from vidsparse.versions import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vidsparse.calibrating.calibrate import Calibration
    from vidsparse.comparison.reporter import Reporter
    from vidsparse.comparison.run import Comparison
    from vidsparse.metrics.weights import Weights
    from vidsparse.pipelines.session import Session
    from vidsparse.policies.parts import register_part
    from vidsparse.preset import Preset
    from vidsparse.presets import PRESETS, register
    from vidsparse.tuning.tune import Tuned

__all__ = [
    "PRESETS",
    "BadInputError",
    "DenseFallbackError",
    "Preset",
    "TokenGrid",
    "VidsparseError",
    "calibrate",
    "compare",
    "register",
    "register_part",
    "session_of",
    "sparsify",
    "tune",
]
__version__ = VERSION
_LATER = {  # these import torch
    "PRESETS": "vidsparse.presets",
    "Preset": "vidsparse.preset",
    "register": "vidsparse.presets",
    "register_part": "vidsparse.policies.parts",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: the command line's help does not wait."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def sparsify(
    target: Any,
    preset: str | Preset = "balanced",
    *,
    strict: bool = False,
    engine: str = "auto",
    **parameters: Any,
) -> Session:
    """Make the self-attention of a diffusers pipeline sparse, reversibly and in place.

    Args:
        target: A diffusers pipeline, or a transformer of one.
        preset: A name in ``PRESETS``, a preset of your own, or ``FILE.py:NAME`` for one in a
            file, or a preset file such as ``tune`` and ``calibrate`` write, by its path.
            What its authors publish for this model is taken where no parameter says otherwise;
            ``session.preset`` is what runs.
        strict: Raise ``DenseFallbackError`` where a call would fall back to dense.
        engine: Kernel engine: "auto", or "triton", "flash", "flex", "xformers", "native", "cpu" or
            "reference"; ``vidsparse doctor`` says which of them run here. "int8" is what
            ``precision="int8"`` runs on, dense steps included.
        **parameters: Parameters of the preset to change, such as ``density=0.3`` or
            ``precision="int8"``; the command ``vidsparse presets NAME`` lists them.

    Returns:
        The session, already active. ``session.remove()`` restores the pipeline, as does leaving
        it as a context manager; ``session.stats`` and ``session.summary()`` say what it did.

    Raises:
        BadInputError: For an unknown preset, parameter, value or model, or a pipeline that
            already has a session; the pipeline is then untouched.
    """
    from vidsparse.pipelines.session import Session  # diffusers is imported here, not before
    from vidsparse.preset import Preset
    from vidsparse.presets import find_preset

    found = find_preset(preset) if isinstance(preset, str) else preset
    if not isinstance(found, Preset):
        raise BadInputError(
            f"a preset is a name, such as 'balanced', or a vidsparse.Preset, not {preset!r}"
        )
    return Session(target, found.override(parameters), strict=strict, engine=engine)


def compare(
    pipe: Any,
    presets: str | Preset | Sequence[str | Preset] = "balanced",
    prompts: str | Sequence[str] = (),
    *,
    seeds: int | Sequence[int] = 0,
    out: str | Path = "compare",
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    inputs: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
    strength: float | None = None,
    fps: float | None = None,
    repeats: int = 1,
    noise_floor: bool = False,
    attention_error: bool = False,
    weights: Weights | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool | Reporter = True,
    **parameters: Any,
) -> Comparison:
    """Make dense and sparse videos from the same seeds, and report what sparsity cost and saved.

    What ``vidsparse compare`` does, with a pipeline that is in memory. The pipeline is given back
    as it was. What the folder ``out`` holds of an earlier call under the same settings, weights
    and code is used again.

    Args:
        pipe: A diffusers pipeline that makes videos or images, without a session.
        presets: Names in ``PRESETS``, or presets of your own.
        prompts: What the videos show.
        seeds: Of the noise; every prompt is made with each.
        out: Folder of the report, its frames and videos.
        frames: Frames of a video; this and what follows is as the model's authors recommend
            where it is left out.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        negative_prompt: What guidance leads away from.
        inputs: Files that the pipeline is given beside the prompt, by what they are to it:
            "image", "last-image", "video", "mask" or "control". A size that is left out is theirs.
        strength: That of the pipeline's call.
        fps: Frames per second of the files.
        repeats: How often each generation is timed, dense and sparse in turns.
        noise_floor: Also compare dense with dense by another engine.
        attention_error: Also measure every attention call of the first clip.
        weights: Local weights of learned metrics.
        strict: Raise ``DenseFallbackError`` where a call would fall back to dense.
        overwrite: Write to a folder that holds files of something else.
        progress: Show a bar over all of the work, on a terminal or in a notebook; or who is told
            of it instead.
        **parameters: Parameters of every preset to change, such as ``density=0.3``.

    Returns:
        The results, as in results.json, and the path of each file that was written.

    Raises:
        BadInputError: For what cannot be compared; nothing is made then.
        VidsparseError: When a run fails; what was finished is kept.
    """
    from pathlib import Path

    from vidsparse.cli.progress import PythonScreen
    from vidsparse.comparison import of_pipe
    from vidsparse.comparison.reporter import Silent
    from vidsparse.comparison.run import run_comparison

    video: dict[str, Any] = {"frames": frames, "height": height, "width": width}
    video |= {"steps": steps, "guidance": guidance, "strength": strength}
    video |= {"negative_prompt": negative_prompt}
    spec = of_pipe.spec_of(
        pipe,
        presets,
        prompts,
        seeds,
        video=video,
        inputs=inputs or {},
        fps=fps,
        strict=strict,
        parameters=parameters,
        weights=weights,
        wants_floor=noise_floor,
        wants_errors=attention_error,
        repeats=repeats,
    )
    measured: dict[str, Any] = {
        "inputs": inputs,
        "fps": fps,
        "noise_floor": noise_floor,
        "attention_error": attention_error,
    }
    command = of_pipe.describe_call(spec, video | measured | {"strict": strict} | parameters)
    reporter = PythonScreen() if progress is True else progress or Silent()
    with of_pipe.as_it_was(pipe):
        return run_comparison(
            spec, Path(out), command=command, reporter=reporter, overwrite=overwrite
        )


def tune(
    pipe: Any,
    prompts: str | Sequence[str],
    presets: str | Preset | Sequence[str | Preset] = ("balanced", "semantic"),
    *,
    target_psnr: float | None = None,
    target_lpips: float | None = None,
    target_seconds: float | None = None,
    out: str | Path = "tuned.toml",
    seeds: int | Sequence[int] = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    weights: Weights | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool | Reporter = True,
    **parameters: Any,
) -> Tuned:
    """Find the cheapest preset that meets a target on a few prompts, and write it to a file.

    Whole runs are measured against dense ones of the same seed: first how much of the attention is
    needed, then how steps, layers and heads best share it. What was run is kept in a folder beside
    the file, so that a later call goes on where this one stopped.

    Args:
        pipe: A diffusers pipeline that makes videos or images from text, without a session.
        prompts: What the videos show; two or three are enough.
        presets: Where to start: names, or presets of vidsparse with other parameters, also those
            of a file that ``calibrate`` wrote.
        target_psnr: In dB against dense, at least; give one target.
        target_lpips: Against dense, at most.
        target_seconds: Of a run, at most: then the best that is in time is sought.
        out: The preset file, which ``sparsify``, ``compare`` and ``--preset`` take by its path.
        seeds: Of the noise; every prompt is made with each.
        frames: Frames of a video; this and what follows is as the model's authors recommend
            where it is left out.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        negative_prompt: What guidance leads away from.
        weights: Local weights of LPIPS.
        strict: Raise ``DenseFallbackError`` where a call would fall back to dense.
        overwrite: Whether a file that is there may be replaced.
        progress: Show a bar over all of the work, on a terminal or in a notebook; or who is told
            of it instead.
        **parameters: Parameters of every preset to change.

    Returns:
        The preset, its file, and what every trial did; ``met`` says whether the target is met. If
        it is not, the file has the best there is.

    Raises:
        BadInputError: For what cannot be tuned; nothing is made then.
        VidsparseError: When a run fails; what was finished is kept.
    """
    from pathlib import Path

    from vidsparse.cli.progress import PythonScreen
    from vidsparse.comparison import of_pipe
    from vidsparse.comparison.reporter import Silent
    from vidsparse.presets import under_base
    from vidsparse.tuning.tune import read_target, run_tuning

    target = read_target(target_psnr, target_lpips, target_seconds)
    video: dict[str, Any] = {"frames": frames, "height": height, "width": width}
    video |= {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
    chosen = [under_base(each) for each in of_pipe.read_presets(presets, parameters)]
    spec = of_pipe.spec_of(
        pipe, chosen, prompts, seeds, video=video, strict=strict, parameters=parameters,
        weights=weights,
    )  # fmt: skip
    given = {f"target_{target.measure.value}": target.value} | video | parameters
    reporter = PythonScreen() if progress is True else progress or Silent()
    with of_pipe.as_it_was(pipe):
        return run_tuning(
            spec, target, Path(out), command=of_pipe.describe_call(spec, given, name="tune"),
            reporter=reporter, overwrite=overwrite,
        )  # fmt: skip


def calibrate(
    pipe: Any,
    method: str | Preset,
    prompts: str | Sequence[str],
    *,
    out: str | Path = "calibrated.toml",
    seeds: int | Sequence[int] = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    error: float | None = None,
    store_masks: bool | None = None,
    overwrite: bool = False,
    progress: bool | Reporter = True,
    **parameters: Any,
) -> Calibration:
    """Find what a method chooses offline, in dense runs of a few prompts, and write it to a file.

    What heads take (``sta``, ``svg``, ``paro``, ``sparse-vdit``, ``mminference``, ``vorta``), or
    the margins of layers (``lite``, ``lite-attention``), is looked for at every call of each run,
    and nothing of q, k and v is kept.

    Args:
        pipe: A diffusers pipeline that makes videos or images from text, without a session.
        method: Its name, or a preset of vidsparse with other parameters.
        prompts: What the videos show; one or two are enough.
        out: The preset file, which ``sparsify``, ``compare`` and ``--preset`` take by its path.
        seeds: Of the noise; every prompt is run with each.
        frames: Frames of a video; this and what follows is as the model's authors recommend
            where it is left out.
        height: In pixels.
        width: In pixels.
        steps: Denoising steps.
        guidance: Guidance scale.
        negative_prompt: What guidance leads away from.
        error: Relative L1 of each layer's output at most, where margins are found; 0.05 when None.
        store_masks: Whether the masks of all heads are kept too, in a file beside it; None does so
            for ``paro``, which alone has some.
        overwrite: Whether files that are there may be replaced.
        progress: Show a bar over all of the work, on a terminal or in a notebook; or who is told
            of it instead.
        **parameters: Parameters of the preset to change.

    Returns:
        The preset, its file, and what was found.

    Raises:
        BadInputError: For what cannot be calibrated; nothing is made then.
        VidsparseError: When a run fails.
    """
    from pathlib import Path

    from vidsparse.calibrating.asked import Asked
    from vidsparse.calibrating.calibrate import run_calibration
    from vidsparse.cli.progress import PythonScreen
    from vidsparse.comparison import of_pipe
    from vidsparse.comparison.reporter import Silent

    [preset] = of_pipe.read_presets(method, parameters)
    asked = Asked.of(preset, error, store_masks)
    video: dict[str, Any] = {"frames": frames, "height": height, "width": width}
    video |= {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
    spec = of_pipe.spec_of(pipe, preset, prompts, seeds, video=video)
    given = video | {"error": error, "store_masks": store_masks} | parameters
    reporter = PythonScreen() if progress is True else progress or Silent()
    command = of_pipe.describe_call(spec, given, name="calibrate", method=preset.name)
    with of_pipe.as_it_was(pipe):
        return run_calibration(
            spec, asked, Path(out), command=command, reporter=reporter, overwrite=overwrite
        )


def session_of(target: Any) -> Session | None:
    """The session that a diffusers pipeline or a transformer is in; None if there is none.

    Args:
        target: A diffusers pipeline, or a transformer of one.

    Raises:
        BadInputError: When there is no transformer.
    """
    from vidsparse.pipelines.session import session_of  # diffusers is imported here, not before

    return session_of(target)
