"""Model folders that anybody may have written: one sentence each, and nothing hangs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.running.checkpoints import find_checkpoint
from vidsparse.pipelines.running.load import TINY, check_folder, load_pipeline


def set_value(folder, file, name, value):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def plan_and_load(folder):
    known = find_checkpoint(folder)
    known.geometry.sequence(**known.size(25, 160, 160))
    return load_pipeline(folder)


INDEX, CONFIG = "model_index.json", "transformer/config.json"
VAE, SCHEDULER = "vae/config.json", "scheduler/scheduler_config.json"
DEEP = '{"a": ' * 100_000


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        (INDEX, "_class_name", "logging", "logging, which .* is no pipeline of diffusers"),
        (INDEX, "_class_name", "WanTransformer3DModel", "is no pipeline of diffusers"),
        (INDEX, "_class_name", ["WanPipeline"], "_class_name"),
        (INDEX, "_class_name", None, "_class_name"),
        (INDEX, "transformer", ["diffusers", "logging"], "is no component of diffusers"),
        (INDEX, "vae", ["diffusers", "DiffusionPipeline"], "model_index.json|config|VAE"),
        (INDEX, "transformer", [1, 2], "transformer"),
        (INDEX, "../vae", ["diffusers", "AutoencoderKLWan"], r"\.\./vae"),
        (CONFIG, "num_layers", 10**9, "num_layers 1e"),
        (CONFIG, "num_layers", 10**400, "num_layers 1e"),
        (CONFIG, "num_layers", 900_000, "more than 5,000 modules"),
        (CONFIG, "num_attention_heads", "x", "cannot make a WanTransformer3DModel"),
        (CONFIG, "rope_max_seq_len", 10**9, "rope_max_seq_len 1e"),
        (CONFIG, "patch_size", "1x2x2", "patch_size '1x2x2'"),
        (CONFIG, "patch_size", [0, 2, 2], r"patch_size \[0, 2, 2\]"),
        (CONFIG, "sample_height", True, "sample_height True"),
        (VAE, "scale_factor_temporal", 0, "scale_factor_temporal 0"),
        (VAE, "z_dim", [16], "z_dim"),
        (SCHEDULER, "num_train_timesteps", 10**9, "num_train_timesteps 1e"),
        (SCHEDULER, "num_train_timesteps", 0, "num_train_timesteps 0"),
        (SCHEDULER, "flow_shift", "wide", "flow_shift 'wide'"),
        (SCHEDULER, "flow_shift", float("nan"), "flow_shift nan"),
    ],
)
def test_a_value_that_no_model_has_is_named(folder, file, name, value, message, monkeypatch):
    monkeypatch.setattr("vidsparse.pipelines.running.empty.MOST_MODULES", 5_000)  # for speed
    set_value(folder, file, name, value)
    with pytest.raises(BadInputError, match=message) as caught:
        plan_and_load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [["transformers", "logging"], ["os", "system"], ["a b", "c"]])
def test_a_text_encoder_that_is_none_is_one_sentence(folder, value):
    set_value(folder, INDEX, "text_encoder", value)
    with pytest.raises(VidsparseError) as caught:
        plan_and_load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["num_layers", "num_heads", "vocab_size"])
@pytest.mark.parametrize("value", [10**9, "x", None, []])
def test_the_config_of_a_text_encoder_may_say_anything(folder, name, value, monkeypatch):
    monkeypatch.setattr("vidsparse.pipelines.running.stored.MOST_MODULES", 5_000)  # for speed
    set_value(folder, "text_encoder/config.json", name, value)
    with pytest.raises(VidsparseError) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [INDEX, CONFIG, "text_encoder/config.json"])
@pytest.mark.parametrize(
    "content", [DEEP, '{"a": ' + "9" * 10_000 + "}", "\x00", '{"a": "\\ud800"']
)
def test_json_that_no_model_has_is_refused(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(BadInputError, match=file.rpartition("/")[2]):
        check_folder(folder)


@pytest.mark.parametrize(
    "file",
    [INDEX, CONFIG, "tokenizer/tokenizer.json", "text_encoder/model.safetensors", "vae/notes.txt"],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere"])
def test_what_is_no_file_is_refused_and_nothing_waits_for_it(folder, file, kind):
    path = folder / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else folder / "nowhere")
    with pytest.raises(BadInputError, match=path.name):
        check_folder(folder)


OFFLINE = """
import socket, sys
asked = []
def refuse(*args, **options):
    asked.append(args)
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = refuse
from vidsparse.cli import run
folder, output = sys.argv[1:]
more = "--frames 5 --height 32 --width 32 --steps 1".split()
codes = [
    run(["plan", "--model", folder, "--size", "160x160", "--frames", "25", "--steps", "4"]),
    run(["doctor"]),
    run(["generate", "a red circle", *more, "-o", output]),
    run(["generate", "a red circle", "--model", folder, *more, "--overwrite", "-o", output]),
]
print("asked", len(asked), "codes", codes)
"""


def test_nothing_local_asks_the_network(folder, tmp_path):
    """bitsandbytes, where it is installed, looks for a kernel as it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(folder), str(tmp_path / "a.mp4")],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        | {"PYTHONPATH": str(Path.cwd())},
        timeout=240,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "asked 0 codes [0, 0, 0, 0]", done.stderr


def test_the_network_is_as_it_was_after_a_load():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        load_pipeline(TINY)
        assert constants.HF_HUB_OFFLINE is False
    finally:
        constants.HF_HUB_OFFLINE = before
