"""Guiders of diffusers: up to three calls of the transformer a step, and some perturb one."""

import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import guiders as _guiders
from diffusers.modular_pipelines.hunyuan_video1_5.denoise import HunyuanVideo15LoopDenoiser
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.qwenimage.denoise import QwenImageLoopDenoiser
from diffusers.modular_pipelines.wan.denoise import WanLoopDenoiser

from vidsparse import sparsify

MODELS = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
STEPS = torch.tensor([950.0, 700.0, 400.0, 100.0])
DENSE: dict[str, Any] = {"min_tokens": 0, "block": 16, "warmup": 1.0, "ramp_until": 1.0}
SPARSE: dict[str, Any] = DENSE | {"density": 0.3, "warmup": 0.1, "ramp_until": 0.1}
WHOLE: dict[str, Any] = SPARSE | {"density": 0.999, "warmup": 0.0}  # with our kernel
DENOISERS: dict[str, Any] = {"wan": WanLoopDenoiser, "qwen_image": QwenImageLoopDenoiser}
DENOISERS |= {"hunyuan_video_15": HunyuanVideo15LoopDenoiser}
BRANCHES = dict.fromkeys(DENOISERS, ("call0", "call1", "call2"))  # which only Hunyuan's names
BRANCHES |= {"hunyuan_video_15": ("pred_cond", "pred_uncond", "pred_cond_seg")}
FIRST: dict[str, Any] = {"indices": [0]}  # the layer that is perturbed
guiders: Any = _guiders  # what it exports, its types do not say


class SmoothedEnergyGuidance(guiders.SmoothedEnergyGuidance):
    """Blurs, as it should: that of diffusers 0.42 does not count its calls and so never does."""

    def __init__(self, **window: float) -> None:
        super().__init__(seg_guidance_config=FIRST, **window)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        self._count_prepared += 1
        super().prepare_models(denoiser)


GUIDERS = {
    "CFG": guiders.ClassifierFreeGuidance,
    "CFG in the middle": partial(guiders.ClassifierFreeGuidance, start=0.25, stop=0.75),
    "CFG zero": guiders.ClassifierFreeZeroStarGuidance,
    "APG": partial(guiders.AdaptiveProjectedGuidance, eta=0.0),
    "APG mix": guiders.AdaptiveProjectedMixGuidance,
    "MAG": guiders.MagnitudeAwareGuidance,
    "TCFG": guiders.TangentialClassifierFreeGuidance,
    "PAG": partial(guiders.PerturbedAttentionGuidance, 2.0, 2.0, 0.0, 1.0, [0]),
    "SEG": SmoothedEnergyGuidance,
    "SLG": partial(guiders.SkipLayerGuidance, 2.0, 2.0, 0.0, 1.0, skip_layer_config=FIRST),
    "auto": partial(guiders.AutoGuidance, auto_guidance_config=FIRST | {"dropout": 0.5}),
    "auto without the layer": partial(guiders.AutoGuidance, auto_guidance_config=FIRST),
}
# In diffusers 0.42 itself, whose hooks know few processors and blocks by name.
RUNS = {"hunyuan_video_15": {"CFG in the middle", "SEG"}, "qwen_image": {"MAG", "PAG"}}
RUNS |= {"wan": GUIDERS.keys() - {"MAG", "PAG"}}
CASES = [(model, name) for model, names in RUNS.items() for name in sorted(names)]
every_case = pytest.mark.parametrize(("model", "name"), CASES)


def run(model, guider, module):
    """What a guider makes of a model in the loop of its modular pipeline, step by step."""
    given = MODELS[model]().inputs
    fields = {"hidden_states": "prompt_embeds", "attention_mask": "prompt_embeds_mask"}
    fields |= {f"{name}_2": f"{field}_2" for name, field in fields.items()}
    text = {f: given[f"encoder_{name}"] for name, f in fields.items() if f"encoder_{name}" in given}
    negative = {f"negative_{f}": x if "mask" in f else -x for f, x in text.items()}
    state: Any = BlockState(
        **(given | text | negative), latent_model_input=given["hidden_states"],
        num_inference_steps=len(STEPS), attention_kwargs=None, dtype=torch.float32,
        denoiser_input_fields={"img_shapes": given.get("img_shapes")}, additional_cond_kwargs={},
    )  # fmt: skip
    made, components = [], SimpleNamespace(guider=guider, transformer=module)
    torch.manual_seed(0)  # for dropout
    for i, state.timestep in enumerate(STEPS[:, None]):
        DENOISERS[model]()(components, state, i=i, t=state.timestep[0])
        state.latent_model_input = state.latent_model_input - 0.1 * state.noise_pred
        made.append(state.noise_pred)
    return torch.stack(made)


def predict(tiny):
    return tiny.module(**tiny.inputs, return_dict=False)[0]


def densities(session):
    """By step, branch and layer."""
    calls = session.stats.calls.items()
    return {(key.step, key.branch.partition("/")[2], key.layer): d.mean() for key, d in calls}


@every_case
@pytest.mark.parametrize("preset", [DENSE, WHOLE], ids=["dense", "whole"])
def test_what_a_guider_does_is_not_lost(model, name, preset):
    module = MODELS[model]().module
    alone, plain = (run(model, GUIDERS[each](), module) for each in (name, "CFG"))
    with sparsify(module, "draft", **preset) as session:
        torch.testing.assert_close(run(model, GUIDERS[name](), module), alone, rtol=0, atol=1e-4)
        assert bool(session.stats.engines) == (preset is WHOLE)
    assert torch.equal(run(model, GUIDERS[name](), module), alone)
    assert (alone - plain).abs().max() > 1e-2 or name == "CFG"


@every_case
def test_calls_are_as_sparse_as_scheduled_unless_their_scores_are_left_out(model, name):
    with sparsify(module := MODELS[model]().module, "draft", **SPARSE) as session:
        run(model, GUIDERS[name](), module)
    seen, first = densities(session), BRANCHES[model][0]
    assert [seen[step, first, 0] < 0.9 for step in range(4)] == [False, True, True, True]
    dense = [(step, "call2", 0) for step in (1, 2, 3)] if name == "PAG" else []
    assert seen == {key: 1 if key in dense else seen[key[0], first, 0] for key in seen}
    reasons = ["the guider leaves attention scores out"] * len(dense)
    assert list(session.stats.fallbacks.elements()) == reasons
    skipped = {"SLG": "call2", "auto without the layer": "call1"}.get(name)
    assert {b for _, b, layer in seen if layer == 0} == {b for _, b, _ in seen} - {skipped}


@pytest.mark.parametrize("model", ["wan", "hunyuan_video_15"])
def test_branches_keep_their_names_through_steps_of_one_two_and_three_calls(model):
    window = {"start": 0.25, "seg_guidance_start": 0.25, "seg_guidance_stop": 0.75}
    with sparsify(module := MODELS[model]().module, "draft", **SPARSE) as session:
        run(model, GUIDERS["SEG"](**window), module)
    assert {(step, branch) for step, branch, _ in densities(session)} == {
        (step, name) for step, n in enumerate([1, 2, 3, 2]) for name in BRANCHES[model][:n]
    }


@torch.no_grad()
@pytest.mark.parametrize(("model", "name"), [("wan", "SLG"), ("wan", "SEG"), ("qwen_image", "PAG")])
@pytest.mark.parametrize("first", [True, False])
def test_a_session_leaves_a_perturbed_model_as_it_was(model, name, first):
    def perturb(module):
        guider.set_state(step=1, num_inference_steps=4, timestep=STEPS[1])
        for _ in range(3):
            guider.prepare_models(module)

    tiny, other, guider = MODELS[model](), MODELS[model](), GUIDERS[name]()
    perturb(other.module)
    session = sparsify(tiny.module, "draft", **SPARSE) if first else None
    perturb(tiny.module)
    with session or sparsify(tiny.module, "draft", **SPARSE):
        predict(tiny)
    assert torch.equal(predict(tiny), predict(other))
    guider.cleanup_models(tiny.module)
    assert torch.equal(predict(tiny), predict(MODELS[model]()))
    assert not torch.allclose(predict(tiny), predict(other), atol=1e-3)
