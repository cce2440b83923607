"""Whole pipelines with random weights: steps, noise and guidance as the pipelines tell them."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.progress import Progress

BUILD = runpy.run_path(str(Path(__file__).with_name("tiny_pipelines.py")))["BUILDERS"]

SPARSE: dict[str, Any] = {
    "min_tokens": 0,
    "block": 16,
    "density": 0.3,
    "warmup": 0.05,
    "ramp_until": 0.05,
}
STEPS = 3


VIDEO = {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16}
HUNYUAN = VIDEO | {"prompt_template": {"template": "{}", "crop_start": 0}}
PIPELINES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "cogvideox": (BUILD["cogvideox"], VIDEO | {"guidance_scale": 6.0}, {"cond", "uncond"}),
    "cogvideox unguided": (BUILD["cogvideox"], VIDEO | {"guidance_scale": 1.0}, {"cond_uncond"}),
    "ltx": (BUILD["ltx"], VIDEO | {"guidance_scale": 3.0}, {"cond", "uncond"}),
    "hunyuan_video": (BUILD["hunyuan_video"], HUNYUAN, {"cond"}),
    "hunyuan_video guided": (
        BUILD["hunyuan_video"],
        HUNYUAN | {"negative_prompt": "bad", "true_cfg_scale": 4.0},
        {"cond", "uncond"},
    ),
    "flux": (BUILD["flux"], {"height": 24, "width": 24, "max_sequence_length": 16}, {"cond"}),
    "pixart": (  # which says whether it is guided in a local variable only
        BUILD["pixart"],
        {"height": 128, "width": 128, "max_sequence_length": 16, "use_resolution_binning": False},
        {"cond", "uncond"},
    ),
    "mochi": (
        BUILD["mochi"],
        VIDEO | {"num_frames": 13, "guidance_scale": 4.5},
        {"cond", "uncond"},
    ),
}


@pytest.fixture(params=PIPELINES)
def case(request):
    build, request, branches = PIPELINES[request.param]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.eval()

    def generate(**changes):
        made = pipe(
            prompt="a red circle",
            num_inference_steps=changes.get("steps", STEPS),
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **request,
        )
        return made[0]

    return pipe, generate, branches


def test_a_generation_is_told_by_step_branch_and_noise(case):
    pipe, generate, branches = case
    untouched = generate()
    dense: dict[str, Any] = SPARSE | {"density": 1.0}
    with vidsparse.sparsify(pipe, "draft", strict=True, **dense):
        torch.testing.assert_close(generate(), untouched, rtol=1e-4, atol=1e-5)
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        told: dict[int, Progress | None] = {}
        session.observe(lambda call, *_: told.update({call.step: call.progress}))
        sparse = generate()
        stats = session.stats
        assert told == {step: replace(Progress.first(STEPS), at=step) for step in (1, 2)}
        found = {(key.step, key.layer, key.branch.split("/")[1]) for key in stats.calls}
        assert found == {
            (step, layer, branch)
            for step in range(STEPS)
            for layer in range(2)
            for branch in branches
        }
        sigmas = [stats.sigmas[step] for step in range(STEPS)]
        assert sigmas == sorted(set(sigmas), reverse=True)
        assert 0.6 < sigmas[0] <= 1
        assert sigmas[-1] >= 0
        assert stats.mean_density < 1
        assert not torch.allclose(sparse, untouched, atol=1e-4)
        generate(steps=2)
        assert {key.step for key in stats.calls} == {0, 1}
        assert torch.equal(generate(), sparse)
        assert stats.generations == 3
    assert torch.equal(generate(), untouched)
