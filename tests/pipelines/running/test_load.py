import json
import shutil
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import vidsparse
from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.forecast import forecast
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS, TINY, find_checkpoint, geometry_of
from vidsparse.pipelines.running.generate import Request, generate, warm_up
from vidsparse.pipelines.running.load import check_folder, load_pipeline


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def test_the_shipped_folder_and_its_copy_are_whole(folder):
    check_folder(TINY)
    check_folder(folder)


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", "vae", "transformer/config.json", "scheduler/scheduler_config.json"],
)
def test_a_partial_folder_is_refused_naming_what_is_missing(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(BadInputError, match=r"incomplete, .*" + missing.rpartition("/")[2]):
        load_pipeline(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / TRANSFORMER).unlink()
    with pytest.raises(BadInputError, match=r"transformer holds no weights \(\*\.safetensors\)"):
        load_pipeline(folder)


def test_absent_shards_are_counted(folder):
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    (folder / "transformer" / shards["a"]).symlink_to((TINY / TRANSFORMER).resolve())
    with pytest.raises(BadInputError, match=r"lacks 1 of its 2 weight files, .*00002-of-00002"):
        check_folder(folder)


def test_pickle_files_are_refused_unless_allowed(folder):
    (folder / TRANSFORMER).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(BadInputError, match=r"pickle files only .*--allow-pickle"):
        load_pipeline(folder)
    check_folder(folder, allow_pickle=True)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_unreadable_json_is_refused(folder, content):
    (folder / "vae" / "config.json").write_text(content)
    with pytest.raises(BadInputError, match=r"vae.config\.json"):
        check_folder(folder)


@pytest.mark.parametrize("length", [0, 5, 4_000, 100_000])
def test_a_weight_file_that_is_cut_off_is_refused(folder, length):
    whole = (TINY / TRANSFORMER).read_bytes()
    (folder / TRANSFORMER).unlink()
    (folder / TRANSFORMER).write_bytes(whole[:length])
    with pytest.raises(BadInputError, match="cut off"):
        load_pipeline(folder)


def test_code_that_comes_with_a_model_is_refused_unless_trusted(folder):
    (folder / "pipeline.py").touch()
    with pytest.raises(BadInputError, match="--trust-remote-code"):
        load_pipeline(folder)
    check_folder(folder, trust_remote_code=True)


def test_a_folder_diffusers_cannot_load_is_one_sentence(folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKLWan", "AutoencoderKLNope"))
    with pytest.raises(VidsparseError, match="diffusers could not load") as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_an_unreachable_model_are_told_apart(tmp_path, monkeypatch):
    with pytest.raises(BadInputError, match="there is no model folder"):
        load_pipeline(tmp_path / "nope")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInputError, match="vidsparse-test/nope is not on this machine"):
        load_pipeline("vidsparse-test/nope")


def test_a_hub_model_of_pickles_is_not_said_to_be_out_of_reach(monkeypatch):
    def refuse(hub_id, **_):
        raise OSError(
            "Could not find the necessary `safetensors` weights in "
            "{'vae/diffusion_pytorch_model.bin'} (variant=None)"
        )

    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    with pytest.raises(BadInputError, match=r"some/model lacks safetensors .*--allow-pickle"):
        load_pipeline("some/model")


def test_a_model_that_the_gpu_has_no_room_for_is_one_sentence_with_ways_out(monkeypatch):
    def full(pipe, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.6 GiB")

    monkeypatch.setattr(DiffusionPipeline, "to", full)
    with pytest.raises(VidsparseError, match=r"weights of .*tiny were brought to cpu: .*--offload"):
        load_pipeline()


def test_dtypes_and_loading_bars(capfd):
    pipe = load_pipeline(TINY, dtype="bfloat16")
    assert pipe.transformer.dtype == torch.bfloat16
    assert capfd.readouterr().err == ""


def test_the_table_knows_the_shipped_pipeline(pipe, folder):
    assert geometry_of(pipe) == CHECKPOINTS["tiny"].geometry == find_checkpoint(folder).geometry
    assert find_checkpoint(folder).layers == CHECKPOINTS["tiny"].layers == 8
    assert find_checkpoint(TINY) is CHECKPOINTS["tiny"]


def test_a_forecast_is_of_the_steps_of_a_real_run(pipe):
    size: dict[str, Any] = {"frames": 9, "height": 64, "width": 96}
    request = Request(prompt="a red circle", **size, steps=20, guidance=1.0, seed=0)
    with vidsparse.sparsify(pipe, "balanced", min_tokens=0, block=16) as session:
        generate(pipe, request)
    grid = CHECKPOINTS["tiny"].geometry.sequence(**size)
    found = forecast(session.preset, grid, 20, layers=8)
    ran = list(session.stats.step_density.values())
    assert ran == pytest.approx(found.step_density, abs=0.02)
    assert session.stats.mean_density == pytest.approx(0.35, abs=0.02)


def test_the_same_seed_gives_the_same_frames_and_steps_are_reported(pipe):
    request = Request(
        prompt="a red circle", frames=5, height=32, width=32, steps=2, guidance=4.0, seed=7
    )
    seen = []
    warm_up(pipe, request)
    first = generate(pipe, request, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert first.shape == (5, 32, 32, 3)
    assert (generate(pipe, request) == first).all()


def test_ctrl_c_in_a_step_leaves_the_pipeline_clean(pipe):
    request = Request(
        prompt="a red circle", frames=5, height=32, width=32, steps=2, guidance=4.0, seed=7
    )
    before = generate(pipe, request)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        vidsparse.sparsify(pipe, "draft", min_tokens=0, density=0.1),
    ):
        generate(pipe, request, interrupt)
    assert (generate(pipe, request) == before).all()
