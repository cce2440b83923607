"""``vidsparse calibrate``: a file that every command takes, and refusals before any work."""

import dataclasses
import json
import tomllib

import pytest
import torch

import vidsparse
from vidsparse.calibrated import Calibrated
from vidsparse.calibrating.asked import table_of
from vidsparse.cli.calibrate import METHOD
from vidsparse.errors import BadInputError
from vidsparse.methods import METHODS
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.preset_files import changed_parameters
from vidsparse.presets import find_preset
from vidsparse.stored_masks import StoredMasks

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")
SMALL = "--frames 5 --height 80 --width 80 --steps 2 --guidance 1 --set min_tokens=0"
PROMPT = "a red circle moving right over a blue background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def paro(folder, pipe):
    """PAROAttention, calibrated on the shipped pipeline in Python."""
    return vidsparse.calibrate(
        pipe, "paro", PROMPT, out=folder / "mine.toml", frames=5, height=80, width=80, steps=2,
        guidance=1.0, min_tokens=0, block=16, progress=False,
    )  # fmt: skip


def test_the_help_names_what_can_be_calibrated():
    found = [method.name for method in METHODS if table_of(method)]
    named = METHOD.partition(": ")[2].rstrip(".").replace(" or ", " ").replace(",", "").split()
    assert sorted(named) == sorted(found)


def test_a_file_says_what_was_found_of_what_and_by_what(paro):
    content = tomllib.loads(paro.path.read_text())
    assert (content["name"], content["base"]) == ("mine", "paro")
    assert content["transformers"] == {"transformer": {"layers": 8, "heads": 4}}
    assert content["made_for"]["grid"] == "2x10x10"
    assert content["made_for"]["prompts"] == [PROMPT]
    assert content["made_by"]["command"].startswith("vidsparse.calibrate(pipe, method='paro'")
    [part] = content["choices"]
    assert sorted(map(int, part["layers"])) == list(range(8))
    assert all(len(heads) == 4 for heads in part["layers"].values())
    assert paro.masks is not None
    assert content["masks"]["file"] == paro.masks.name == "mine.safetensors"
    assert sum(paro.shares.values()) == pytest.approx(1)
    assert "masks of mean density" in str(paro)


def test_sparsify_runs_the_masks_of_the_file_and_no_others(paro, pipe):
    with vidsparse.sparsify(pipe, str(paro.path), strict=True) as session:
        works = []
        session.observe(lambda call, work, *rest: works.append((call, work)))
        pipe(PROMPT, num_frames=5, height=80, width=80, num_inference_steps=2, guidance_scale=1.0,
             output_type="latent", generator=torch.Generator().manual_seed(3))  # fmt: skip
    [masks] = [each for each in session.preset.of_model if isinstance(each, StoredMasks)]
    assert session.stats.mean_density == pytest.approx(masks.density, abs=0.01)
    plans = {(call.step, call.layer): work.plan.to_block_mask() for call, work in works}
    assert len(plans) == 16
    assert not torch.equal(plans[0, 0], plans[1, 0])  # the halves of the run have their own


def test_every_command_takes_the_file(cli, paro, tmp_path):
    shown = cli("presets", paro.path)
    assert "mine: paro, calibrated on one dense run" in shown.out
    arguments = [PROMPT, *SMALL.split(), "--preset", paro.path, "--strict"]
    made = cli("generate", *arguments, "-o", tmp_path / "out.mp4", "--json")
    assert made.code == 0, made.err
    planned = cli("plan --model tiny --frames 5 --size 80x80 --preset", paro.path, "--json")
    assert planned.code == 0, planned.err
    assert 0.4 < json.loads(planned.out)["block_density"] < 0.6


def test_a_file_of_another_model_or_size_is_refused(cli, paro, models, tmp_path):
    wide = "--frames 5 --height 80 --width 160 --steps 2 --guidance 1 --preset"
    refused = cli("generate", PROMPT, *wide.split(), paro.path, "-o", tmp_path / "out.mp4")
    assert refused.code == 2
    assert "are of 2 x 10 x 10 tokens, and this video has 2 x 10 x 20" in refused.err
    text = paro.path.read_text()
    other = tmp_path / "other.toml"
    masked = tomllib.loads(text)["masks"]["file"]
    (tmp_path / masked).write_bytes((paro.path.parent / masked).read_bytes())
    other.write_text(text.replace('"mine"', '"other"', 1).replace("layers = 8", "layers = 9"))
    for command in ("generate", "compare"):
        small = [PROMPT, *SMALL.split()[:8], "--preset", other, "-o", tmp_path / command]
        refused = cli(command, *small)
        assert refused.code == 2
        assert "was calibrated for 9 layers in the transformer, and this model has 8" in refused.err
    other.write_text(text.replace('"mine"', '"other"', 1).replace("heads = 4", "heads = 6"))
    with pytest.raises(BadInputError, match="for 8 layers of 6 heads in the transformer, and this"):
        vidsparse.sparsify(load_pipeline(), str(other))
    (tmp_path / masked).write_bytes(b"0")
    with pytest.raises(BadInputError, match="its checksum is another"):
        vidsparse.sparsify(load_pipeline(), str(other))


@pytest.mark.parametrize(
    ("method", "table", "more"),
    [
        ("vorta", "choices", "--set block=16"),
        ("lite-attention", "margins", "--error 0.2 --set block=16"),
        ("paro", "choices", "--no-store-masks"),
    ],
)
def test_the_command_writes_what_each_method_reads(cli, method, table, more, tmp_path):
    path = tmp_path / "found.toml"
    code, out, err = cli(
        "calibrate", method, PROMPT, *SMALL.split(), *more.split(), "-o", path, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["path"] == str(path)
    [held] = find_preset(str(path)).of_model
    assert isinstance(held, Calibrated)
    assert table in tomllib.loads(path.read_text())
    assert held.method == method
    values = [value for _, layers in held.parts for _, each in layers for value in each]
    assert len(held.parts[0][1]) == 8
    assert len({type(value) for value in values}) == 1
    assert list(tmp_path.iterdir()) == [path]
    assert "prompt 1, seed 0" in err


def test_tune_starts_from_a_file_as_from_its_base(cli, tmp_path, monkeypatch):
    path, seen = tmp_path / "vdit.toml", []
    head = 'name = "vdit"\nbase = "sparse-vdit"\n[parameters]\ncost_weight = 0.2\n'
    path.write_text(head + '[[choices]]\nuntil = 1\n[choices.layers]\n0 = "full"\n')

    def tuned(spec, *arguments, **more):
        seen.extend(spec.presets)
        raise BadInputError("seen")

    monkeypatch.setattr("vidsparse.tuning.tune.run_tuning", tuned)
    more = [*SMALL.split(), "--target-psnr", "20", "-o", tmp_path / "t.toml"]
    assert "seen" in cli("tune", PROMPT, "--preset", path, *more).err
    [preset] = seen
    base = find_preset("sparse-vdit")
    found = changed_parameters(preset, base)
    assert (preset.name, found["choices"], found["cost_weight"]) == (base.name, str(path), 0.2)
    assert base.override(found) == dataclasses.replace(preset, told=frozenset())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("radial", "radial has nothing to calibrate: there is "),
        ("rainfusion", "rainfusion has nothing to calibrate"),
        ("parro", "unknown preset 'parro': did you mean paro"),
        ("paro -o x.json", "must end in .toml"),
        ("paro -o there.toml", "there.toml exists: give --overwrite"),
        ("paro -o beside.toml", "beside.safetensors exists: give --overwrite"),
        ("paro --error 0.1", "paro is calibrated to no error"),
        ("sta --store-masks", "sta keeps no masks"),
        ("lite-attention --error 2", "error must be in (0, 1)"),
        ("paro --frames 9 --height 96 --width 96", "432 tokens are too few to gain"),
        ("svg --steps 1", "every step of 1 is dense in svg"),
        ("paro --set bogus=1", "no parameter 'bogus'"),
        ("paro --set choices=old.toml", "choices are what is found: leave choices out"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_the_model_is_loaded(
    cli, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("there.toml", "beside.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "old.toml").write_text(
        'base = "paro"\n[[choices]]\nuntil = 1\n[choices.layers]\n0 = "hwf"\n'
    )
    monkeypatch.setattr("vidsparse.comparison.job.Job.load", None)
    code, out, err = cli("calibrate", *arguments.split()[:1], PROMPT, *arguments.split()[1:])
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
