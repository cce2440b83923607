"""What diffusers does to a pipeline: the right things, in the right order, or a sentence."""

import functools
import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters
from torchao.quantization import quant_api

import vidsparse
from vidsparse.comparison.fingerprint import of_machine
from vidsparse.comparison.job import Job
from vidsparse.comparison.models import StoredModel
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running import stack
from vidsparse.pipelines.running.caches import read_cache
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS
from vidsparse.pipelines.running.generate import Request, generate
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.quantized import quantize_in_place
from vidsparse.pipelines.running.stack import Stack, is_compiled, lora_files

SPARSE: dict[str, Any] = {"min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.05}
STEPS, CPU = 3, torch.device("cpu")


@pytest.fixture
def stored(wan, tmp_path):
    """The folder of a pipeline of two layers."""
    wan.build["one_expert"]().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def lora(wan, tmp_path):
    """A LoRA of that, as diffusers saves it, and what it makes."""
    pipe = wan.build["one_expert"]()
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k"])
    pipe.transformer.add_adapter(config)
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    return tmp_path / "lora", wan.generate(pipe)


def loaded(stored, **settings):
    pipe = load_pipeline(stored, stack=Stack(steps=STEPS, **settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def placed(wan, **settings):
    """A pipeline in memory that is set up on the CPU, where the command line would refuse."""
    pipe = wan.build["one_expert"]()
    Stack(steps=STEPS, **settings).set_up(pipe, "cpu")
    return pipe


@pytest.mark.parametrize("offload", ["model", "group"])
def test_weights_that_wait_elsewhere_change_nothing(wan, untouched, offload):
    pipe = placed(wan, offload=offload)
    torch.testing.assert_close(wan.generate(pipe), untouched("one_expert"), rtol=1e-4, atol=1e-5)
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        wan.generate(pipe)
    assert session.stats.mean_density < 1


def test_a_transformer_that_waits_block_by_block_is_nowhere_whole(wan, monkeypatch):
    """On a card too small for it ``Module.to`` would fail, and with it the run."""
    moved = []
    monkeypatch.setattr(nn.Module, "to", lambda module, *where, **_: moved.append(module) or module)
    pipe = placed(wan, offload="group", vae_tiling=True)
    monkeypatch.undo()
    assert not [each for each in moved if each in pipe.components.values()]
    kinds = {
        name: {
            hook.config.offload_type.value
            for part in pipe.components[name].modules()
            if (hook := group_hook(part)) is not None
        }
        for name in ("transformer", "vae", "text_encoder")
    }
    leaf = {"leaf_level"}
    assert kinds == {"transformer": {"block_level"}, "vae": leaf, "text_encoder": leaf}


@pytest.mark.parametrize("tiled", [False, True])
def test_nothing_is_fetched_ahead_for_tiles(wan, monkeypatch, tiled):
    pipe, asked = wan.build["one_expert"](), {}
    for name in ("transformer", "vae"):
        monkeypatch.setattr(
            pipe.components[name], "enable_group_offload",
            lambda name=name, **how: asked.update({name: how["use_stream"]}),
        )  # fmt: skip
    monkeypatch.setattr(stack, "apply_group_offloading", lambda module, **how: None)
    Stack(offload="group", vae_tiling=tiled).set_up(pipe, "cuda")
    assert asked == {"transformer": True, "vae": not tiled}


def group_hook(module):
    """What offloads a group that a module is in, if anything does."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry and registry.get_hook("group_offloading")


@pytest.mark.parametrize("quantize", ["fp8", "int8-dynamic"])
def test_rows_of_zeros_as_prompts_are_padded_with_stay_numbers(monkeypatch, quantize):
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda *_: None)  # emulated here
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32).bfloat16(), torch.randn(4, 64, dtype=torch.bfloat16)
    x[2] = 0
    expected = linear(x)
    quantize_in_place(linear, quantize)
    assert 0 < (linear(x) - expected).norm() / expected.norm() < 0.1
    torch.testing.assert_close(linear(x)[2], expected[2])


def test_layers_of_the_shipped_pipeline_that_wait_change_nothing(monkeypatch):
    """diffusers names the device ``cpu:0``; a copy of a parameter to there is a plain tensor."""
    on_cpu = accelerate.cpu_offload
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda module, _, **how: on_cpu(module, CPU, **how)
    )
    call: dict[str, Any] = {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 2}
    made = []
    for offload in (None, "sequential"):
        pipe = load_pipeline(stack=Stack(quantize="int8"))
        Stack(offload=offload).set_up(pipe, "cpu")
        pipe.set_progress_bar_config(disable=True)
        waits = {parameter.device.type for parameter in pipe.transformer.parameters()}
        assert waits == ({"cpu"} if offload is None else {"meta"})
        draw = torch.Generator().manual_seed(0)
        with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE):
            made.append(pipe("a circle", output_type="latent", generator=draw, **call).frames)
    assert torch.equal(*made)


def test_a_lora_is_loaded_from_its_file_or_folder(wan, stored, lora):
    folder, expected = lora
    for path in (folder, *lora_files(folder)):
        made = wan.generate(loaded(stored, lora=path))
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    made = wan.generate(loaded(stored, lora=folder, quantize="int8"))
    distance = (made - expected).abs().mean()
    assert 0 < distance < 0.2 * (expected - wan.generate(loaded(stored))).abs().mean()
    with_offload = placed(wan, lora=folder, offload="group")
    torch.testing.assert_close(wan.generate(with_offload), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic"])
def test_eight_bit_weights_are_those_of_the_transformer_alone(wan, stored, quantize):
    pipe = loaded(stored, quantize=quantize)
    for weight in (each for each in pipe.transformer.parameters() if hasattr(each, "qdata")):
        assert (getattr(weight, "act_quant_kwargs", None) is None) == (quantize == "int8")
    kinds = {type(p).__name__ for p in pipe.transformer.parameters()}
    assert "Int8Tensor" in kinds
    assert {type(p).__name__ for p in pipe.text_encoder.parameters()} == {"Parameter"}
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        wan.generate(pipe)
    assert session.stats.mean_density < 1


CALLS = 12  # two layers, two branches, three steps
CACHES = [
    "first-block=10",
    "mag=mag_ratios=RATIOS,threshold=5,retention_ratio=0.3",
    "taylorseer=cache_interval=2,disable_cache_before_step=1",
    "taylorseer=use_lite_mode=true,cache_interval=2,disable_cache_before_step=1",
]


@pytest.mark.parametrize("text", CACHES)
def test_a_cache_skips_calls_beside_sparsity_and_offload(wan, tmp_path, text):
    (tmp_path / "ratios.json").write_text(json.dumps([1.0] * 5))
    cache = read_cache(text.replace("RATIOS", str(tmp_path / "ratios.json")))
    made = []
    for offload in (None, "group"):
        pipe = placed(wan, cache=cache, offload=offload)
        with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
            made.append(wan.generate(pipe))
            assert torch.equal(wan.generate(pipe), made[-1])  # and begins anew
        assert 0 < len(session.stats.calls) < CALLS
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "offload"),
    [(CACHES[0], None), (CACHES[1], None), (CACHES[3], "group"), ("", "group")],
)
def test_hooks_stay_outside_of_compiled_blocks_and_nothing_is_compiled_after_the_first(
    wan, tmp_path, monkeypatch, text, offload
):
    (tmp_path / "ratios.json").write_text(json.dumps([1.0] * 5))
    text = text.replace("RATIOS", str(tmp_path / "ratios.json"))
    cache = read_cache(text) if text else None
    eager = placed(wan, cache=cache)
    with vidsparse.sparsify(eager, "draft", strict=True, **SPARSE) as session:
        expected, calls = wan.generate(eager), len(session.stats.calls)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    pipe, graphs = placed(wan, cache=cache, compile=True, offload=offload), []
    assert is_compiled(pipe)
    assert not is_compiled(eager)
    with vidsparse.sparsify(pipe, "draft", strict=True, **SPARSE) as session:
        pipe.transformer.register_forward_hook(
            lambda *_: graphs.append(counters["stats"]["unique_graphs"])
        )
        torch.testing.assert_close(wan.generate(pipe), expected, rtol=1e-4, atol=1e-5)
        assert len(session.stats.calls) == calls
    assert (calls < CALLS) == bool(text)
    assert graphs == [1] * (2 * STEPS)
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_tiles_and_compiled_blocks_are_asked_of_diffusers(wan, monkeypatch):
    pipe, asked = wan.build["one_expert"](), []
    monkeypatch.setattr(
        type(pipe.transformer), "compile_repeated_blocks", lambda self, **how: asked.append(how)
    )
    Stack(compile=True, vae_tiling=True).set_up(pipe, "cpu")
    assert pipe.vae.use_tiling
    Stack(compile=True).set_up(wan.build["two_experts"](), "cpu")
    assert [how["fullgraph"] for how in asked] == [True, True, True]
    grouped = wan.build["one_expert"]()
    Stack(compile=True, offload="group").set_up(grouped, "cpu")
    assert is_compiled(grouped)
    assert len(asked) == 3  # these are compiled within the hooks that bring weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int4"}, "unknown --quantize 'int4': choose fp8, int8, int8-dynamic"),
        ({"quantize": "fp8"}, "--quantize fp8 needs an NVIDIA GPU: take int8 here"),
        ({"offload": "disk"}, "unknown --offload 'disk': choose model, group, sequential"),
        ({"offload": "group"}, "--offload group needs a GPU"),
        ({"compile": True, "cache": read_cache("taylorseer")}, "and --cache taylorseer cannot go"),
        ({"compile": True, "offload": "sequential"}, "--compile and --offload sequential cannot"),
        ({"lora": Path("none")}, "--lora none must be a .safetensors file, or a folder that holds"),
        ({"cache": read_cache("mag")}, "mag needs ratios measured on the model"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_load(stored, monkeypatch, settings, message):
    monkeypatch.setattr("vidsparse.pipelines.running.load.check_tensors", None)
    with pytest.raises(BadInputError) as refused:
        load_pipeline(stored, stack=Stack(steps=STEPS, **settings))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("package", "settings"), [("torchao", {"quantize": "int8"}), ("peft", {"lora": Path("a")})]
)
def test_a_package_that_is_missing_is_named(monkeypatch, package, settings):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=f"needs {package}: pip install {package}"):
        Stack(**settings).check("cpu", "float32")


def test_what_a_model_cannot_have_is_refused(wan, stored, tmp_path):
    save_file({"unet.a.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="holds nothing for WanPipeline"):
        loaded(stored, lora=tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="shares them between two"):
        read_cache("mag").check(["WanTransformer3DModel"] * 2)
    wan.build["video_to_video"]().save_pretrained(tmp_path / "changes")
    with pytest.raises(BadInputError, match="first-block: WanVideoToVideoPipeline does not tell"):
        loaded(tmp_path / "changes", cache=read_cache("first-block"))
    wan.build["two_experts"]().save_pretrained(tmp_path / "two")
    with pytest.raises(BadInputError, match="two transformers, and diffusers would change the fir"):
        loaded(tmp_path / "two", lora=tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="mag and --strength cannot go together"):
        Stack(cache=read_cache("mag")).check_strength(0.5)
    config = stored / "transformer" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": {"a": 1}})
    )
    with pytest.raises(BadInputError, match="are quantised already"):
        Stack(quantize="int8").check_folder(stored)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first", "unknown cache 'first': choose first-block, mag, taylorseer"),
        ("mag=a=1", "--cache mag has no 'a': it has threshold, max_skip_steps"),
        ("first-block=-1", "cannot take threshold=-1: it must be at least 0"),
        ("first-block=nan", "cannot take threshold=nan: it must be at least 0"),
        ("taylorseer=0", "cannot take cache_interval=0: it must be at least 1"),
        ("taylorseer=use_lite_mode=1", "it must be true or false"),
        ("first-block=1,threshold=2", "--cache first-block has threshold twice"),
        ("mag=mag_ratios=none.json", "No such file"),
    ],
)
def test_a_cache_that_is_not_understood_is_refused(text, message):
    with pytest.raises(BadInputError) as refused:
        read_cache(text)
    assert message in str(refused.value)


@pytest.mark.parametrize("cache", ["taylorseer", "taylorseer=use_lite_mode=true"])
def test_a_run_that_failed_leaves_nothing_in_a_cache(wan, cache):
    pipe = placed(wan, cache=read_cache(cache))
    request = Request(prompt="a", frames=5, height=32, width=32, steps=6, guidance=2.0)
    expected = generate(pipe, request)

    def stop(done, steps):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, request, stop)
    assert (generate(pipe, request) == expected).all()


def test_finished_work_is_of_the_stack_and_of_the_loras_content(tmp_path):
    def facts(**settings):
        checkpoint, stack = CHECKPOINTS["tiny"], Stack(steps=STEPS, **settings)
        where: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
        model = StoredModel(source=checkpoint.source, stack=stack, **where)
        return of_machine(Job(model=model, checkpoint=checkpoint, fps=8, requests=[], **where))

    def changed(before, now):
        return [key for key in before if before[key] != now[key]]

    plain = facts()
    assert changed(plain, facts()) == []
    assert changed(plain, facts(compile=True)) == ["stack"]
    caches = [facts(cache=read_cache(f"first-block={threshold}")) for threshold in (0.1, 0.2)]
    assert changed(*caches) == ["stack"]
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"a")
    before = facts(lora=file)
    file.write_bytes(b"ab")
    assert changed(before, facts(lora=file)) == ["weights"]
    assert changed(plain, before) == ["weights", "stack"]


def test_a_shift_takes_the_place_of_that_of_the_folder(stored):
    usual, shifted = loaded(stored), loaded(stored, shift=9.0)
    assert shifted.scheduler.config.shift == 9.0 != usual.scheduler.config.shift
    for pipe in (usual, shifted):
        pipe.scheduler.set_timesteps(STEPS)
    assert (shifted.scheduler.sigmas[1:-1] > usual.scheduler.sigmas[1:-1]).all()
    assert Stack(shift=9.0).describe() == ["shift 9"]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_flow_sigmas": False, "flow_shift": 3.0}, "noise levels without a shift"),
        ({"shift": 1.0, "use_dynamic_shifting": True}, "by the size of the video"),
    ],
)
def test_a_shift_is_refused_before_weights_load_where_there_is_none(stored, config, why):
    path = stored / "scheduler" / "scheduler_config.json"
    kind = json.loads(path.read_text())["_class_name"]
    path.write_text(json.dumps({"_class_name": kind} | config))
    with pytest.raises(BadInputError, match=f"--shift.*{kind}.*{why}"):
        Stack(shift=5.0).check_folder(stored)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_is_a_number_above_zero(shift):
    with pytest.raises(BadInputError, match="--shift must be a number above 0"):
        Stack(shift=shift).check("cpu", "float32")
