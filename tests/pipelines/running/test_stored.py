"""A tensor that is missing or of another shape is refused by name, in every component."""

import json
import shutil

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.load import TINY, load_pipeline
from vidsparse.pipelines.running.stored import check_tensors

NAME = "diffusion_pytorch_model.safetensors"
WEIGHTS = {
    "transformer": (NAME, "blocks.1.attn1.to_k.weight"),
    "transformer_2": (NAME, "proj_out.bias"),
    "vae": (NAME, "decoder.conv_in.weight"),
    "text_encoder": ("model.safetensors", "encoder.block.1.layer.0.SelfAttention.v.weight"),
    "image_encoder": ("model.safetensors", "vision_model.encoder.layers.0.mlp.fc1.weight"),
}


def change(folder, component, how):
    """Let ``how`` change the tensors of a component; return the name of the one that it should."""
    file, name = WEIGHTS[component]
    tensors = load_file(folder / component / file)
    name = next(held for held in tensors if held.endswith(name.removeprefix("vision_model.")))
    how(tensors, name)
    save_file(tensors, folder / component / file, metadata={"format": "pt"})
    return name


def lose(tensors, name):
    del tensors[name]


def reshape(tensors, name):
    tensors[name] = torch.zeros(5, *tensors[name].shape[1:])


@pytest.fixture
def folder(every_component, tmp_path):
    return shutil.copytree(every_component, tmp_path / "model")


def test_whole_folders_are_taken(folder):
    check_tensors(TINY)
    check_tensors(folder)
    assert load_pipeline(folder).image_encoder is not None


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize(
    ("how", "message"), [(lose, r"lack 1 of the \d+ tensors"), (reshape, r"in the shape \(5[,)]")]
)
def test_a_tensor_that_does_not_fit_is_named(folder, component, how, message):
    name = change(folder, component, how)
    with pytest.raises(BadInputError, match=message) as caught:
        load_pipeline(folder)
    assert name.removeprefix("vision_model.") in str(caught.value)
    assert str(folder / component) in str(caught.value)


@pytest.mark.parametrize("how", [lose, reshape])
def test_shards_are_looked_into(folder, how):
    transformer = folder / "transformer"
    WanTransformer3DModel.from_pretrained(transformer).save_pretrained(
        transformer, max_shard_size="100KB"
    )
    (transformer / NAME).unlink()
    check_tensors(folder)
    index = json.loads((transformer / f"{NAME}.index.json").read_text())["weight_map"]
    name = WEIGHTS["transformer"][1]
    shard = load_file(transformer / index[name])
    how(shard, name)
    save_file(shard, transformer / index[name], metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=name):
        check_tensors(folder)


def test_a_shard_of_another_folder_is_refused(folder):
    index = folder / "transformer" / f"{NAME}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../vae/" + NAME}}))
    with pytest.raises(BadInputError, match="must be a name without a path"):
        load_pipeline(folder)


def test_what_the_library_ties_leaves_out_or_renames_is_no_fault(folder):
    """Tied embeddings stand once, Wan's ``norm_added_q`` is ignored, old names have new ones."""
    encoder = T5EncoderModel(T5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4,
    ))  # fmt: skip
    encoder.save_pretrained(folder / "text_encoder")
    held = load_file(folder / "text_encoder" / "model.safetensors")
    assert held.keys() < encoder.state_dict().keys()
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(json.dumps(index))

    def add(tensors, name):
        tensors["blocks.0.attn2.norm_added_q.weight"] = torch.zeros(4)

    change(folder, "transformer", add)
    check_tensors(folder)


def test_a_quantized_component_is_left_to_its_quantizer(folder):
    config = folder / "transformer" / "config.json"
    more = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    change(folder, "transformer", lose)
    check_tensors(folder)


def test_what_the_hub_gives_is_looked_into_too(folder, monkeypatch):
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    name = change(folder, "text_encoder", lose)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *args, **options: str(folder))
    with pytest.raises(BadInputError, match=name):
        load_pipeline("some/model")
