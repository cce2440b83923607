"""The blocks of Python in docs/setups.md run as they stand, on pipelines with random weights."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline
from peft import LoraConfig, get_peft_model_state_dict

import vidsparse
from vidsparse.pipelines.running.stack import is_compiled

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "setups.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
PIPELINES = ROOT / "tests" / "pipelines"
WAN = runpy.run_path(str(PIPELINES / "conftest.py"))
LTX = runpy.run_path(str(PIPELINES / "tiny_pipelines.py"))["BUILDERS"]["ltx"]


@pytest.fixture
def pipe():
    return WAN["one_expert"]()


def run(word, **names):
    """Run the one block that holds a word."""
    (block,) = [block for block in BLOCKS if word in block]
    names |= {"torch": torch, "vidsparse": vidsparse, "device": "cpu"}
    exec(block, names)
    return names


def test_there_is_no_block_that_no_test_runs():
    assert len(BLOCKS) == 5


def test_weights_are_quantised_as_they_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded: Any = run("Int8WeightOnlyConfig", model=tmp_path)["pipe"]
    assert type(loaded.transformer.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"


def test_a_lora_a_cache_and_offload(pipe, tmp_path):
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q"]), "new")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="new")
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    fresh: Any = WAN["one_expert"]()
    run("load_lora_weights", pipe=fresh, lora=tmp_path)
    assert fresh.get_active_adapters() == ["default_0"]
    assert fresh.transformer.is_cache_enabled
    with vidsparse.sparsify(
        fresh, "draft", min_tokens=0, block=16, density=0.3, warmup=0.05
    ) as session:
        WAN["generate"](fresh)
    assert session.stats.mean_density < 1


def test_tiles_and_compiled_blocks(pipe):
    run("compile_repeated_blocks", pipe=pipe)
    assert pipe.vae.use_tiling
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.blocks)


def test_compiled_blocks_beside_a_cache(pipe):
    run("block.forward = torch.compile", pipe=pipe)
    assert pipe.transformer.is_cache_enabled
    assert is_compiled(pipe)


def test_two_stages_of_ltx_in_one_session():
    pipe: Any = LTXConditionPipeline(**LTX().components)
    pipe.set_progress_bar_config(disable=True)
    upsampler = LTXLatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1)

    settings = {"num_inference_steps": 3, "max_sequence_length": 16, "guidance_scale": 1.0}
    made = run(
        "LatentUpsample", prompt="a circle", upsampler=upsampler, pipe=pipe, settings=settings
    )
    assert [frame.size for frame in made["video"]] == [(192, 128)] * 9
    assert made["session"].stats.generations == 2
