"""``vidsparse tune``: a file that every command takes, going on, and targets that cannot be met."""

import json
import tomllib

import pytest

import vidsparse
from vidsparse.comparison import measure
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.tuning.tune import CHANGES

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")
RUN = "--frames 5 --height 48 --width 48 --steps 4 --guidance 1 --set min_tokens=0 --set block=16"
PROMPT = "a red circle moving right over a blue background"


def tune_tiny(path, **more):
    return vidsparse.tune(
        load_pipeline(), PROMPT, "balanced", target_psnr=22, out=path, frames=5, height=48,
        width=48, steps=4, guidance=1.0, min_tokens=0, block=16, progress=False, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def coarse():
    """Few trials: coarse densities, and one other way to share them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidsparse.tuning.search.STEP", 0.15)
        patch.setattr("vidsparse.tuning.search.SAVINGS", 1)
        patch.setattr("vidsparse.tuning.tune.CHANGES", CHANGES[:1])
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, coarse):
    """The shipped pipeline, tuned in Python."""
    return tune_tiny(tmp_path_factory.mktemp("tuned") / "mine.toml")


def test_the_target_is_met_on_the_prompts_and_the_file_says_what_to_expect(tuned):
    assert -tuned.trial.error >= 22
    content = tomllib.loads(tuned.path.read_text())
    assert content["base"] == "balanced"
    expected = content["expected"]
    assert expected["psnr"]["mean"] == pytest.approx(-tuned.trial.error)
    assert expected["mean_density"] == tuned.trial.density < 1
    assert expected["met"] == tuned.met == (tuned.trial.gain > 1)
    assert content["made_for"]["grid"] == "2x6x6"
    assert content["made_by"]["command"].startswith("vidsparse.tune(pipe, presets=['balanced']")
    schedule = tuned.trial.preset.schedule
    for each in tuned.tried:
        if each.preset.schedule == schedule:  # nothing that was tried, meets it and is sparser
            assert (-each.error >= 22) == (each.density >= tuned.trial.density - 1e-6)
    assert "22 dB PSNR against dense is met by" in tuned.sentence


def test_every_command_and_sparsify_take_the_file(cli, tuned):
    shown = cli("presets", tuned.path)
    assert "mine: balanced, tuned for 22 dB PSNR against dense" in shown.out
    assert "expected: target 22 dB PSNR against dense, met" in " ".join(shown.err.split())
    assert json.loads(cli("presets", tuned.path, "--json").out)["name"] == "mine"
    planned = cli("plan --model tiny --steps 20 --preset", tuned.path, "--json")
    assert planned.code == 0, planned.err
    pipe = load_pipeline()
    with vidsparse.sparsify(pipe, str(tuned.path)) as session:
        assert session.preset.parameters() == tuned.preset.parameters()


def test_a_second_call_makes_nothing_anew(tuned, monkeypatch):
    def fail(*arguments, **more):
        raise AssertionError("it was run before")

    monkeypatch.setattr(measure, "measure", fail)
    monkeypatch.setattr("vidsparse.tuning.tune._share", lambda best, *_: best)
    with pytest.raises(BadInputError, match="exists: give --overwrite"):
        tune_tiny(tuned.path)
    again = tune_tiny(tuned.path, overwrite=True)
    assert again.tried == tuned.tried[: len(again.tried)]


def test_a_target_that_cannot_be_met_ends_in_1_and_the_best_is_written(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("vidsparse.tuning.search.STEP", 0.3)
    monkeypatch.setattr("vidsparse.tuning.tune.CHANGES", ())
    monkeypatch.setattr("vidsparse.tuning.tune._share", lambda best, *_: best)
    path = tmp_path / "hard.toml"
    arguments = [PROMPT, *RUN.split(), "--preset", "balanced", "--target-psnr", "90", "-o", path]
    code, out, err = cli("tune", *arguments)
    assert code == 1
    assert "90 dB PSNR against dense cannot be met by these presets; the best is" in err
    assert tomllib.loads(path.read_text())["expected"]["met"] is False
    assert "balanced" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give one target"),
        ("--target-psnr 28 --target-seconds 3", "give one target"),
        ("--target-psnr -2", "the target psnr must be above 0, got -2"),
        ("--target-psnr 28 -o my.json", "must end in .toml"),
        ("--target-lpips 0.1", "LPIPS needs a network"),
        ("--target-psnr 28 --frames 5 --height 96 --width 96", "288 tokens are too few to gain"),
        ("--target-psnr 28 --preset radial --steps 4 --set bogus=1", "no parameter 'bogus'"),
    ],
)
def test_what_cannot_be_tuned_is_refused(cli, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("tune", PROMPT, *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
