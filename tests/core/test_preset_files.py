"""Preset files: what is written is what is read, and what is none is refused in words."""

import dataclasses

import pytest

import vidsparse
from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.preset_files import PresetFile, changed_parameters
from vidsparse.presets import PRESETS, find_preset

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")


def same(preset):
    return dataclasses.replace(preset, name="", summary="", source="")


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("balanced", {"mean_density": 0.31, "ramp_until": 0.2, "precision": "int8"}),
        ("semantic", {"density": 0.2, "dense_layers": 2, "share_branches": False}),
        ("radial", {"decay": 0.7, "block": 64}),
        ("fast", {}),
        ("balanced", {"mean_density": 0.2, "ramp_until": 0.3}),  # not the ramp it would bring
        ("balanced", {"mean_density": 0.2}),
    ],
)
def test_a_preset_comes_back_as_it_was_written(base, changes, tmp_path):
    preset = PRESETS[base].override(changes)
    path = tmp_path / "mine.toml"
    told = {"expected": {"psnr": {"mean": 28.5}, "met": True}, "made_for": {"model": 'a "b"\n'}}
    parameters = changed_parameters(preset, PRESETS[base])
    file = PresetFile(path=path, name="mine", base=base, parameters=parameters, told=told)
    file.write()
    assert PresetFile.read(path) == file
    found = find_preset(str(path))
    assert same(found) == same(preset)
    assert (found.name, found.source) == ("mine", str(path))
    assert vidsparse.PRESETS["mine"] is found


def test_budgets_stand_in_the_file(tmp_path):
    path = tmp_path / "layers.toml"
    path.write_text(
        'name = "layers"\nbase = "draft"\n[parameters]\ndensity = 0.3\n'
        "[budgets]\n0 = 0.6\n3 = [0.1, 0.4]\n"
    )
    budgets = find_preset(str(path)).schedule.budgets
    assert budgets == Budgets(str(path), (("0", (0.6,)), ("3", (0.1, 0.4))))
    path.write_text(path.read_text().replace("0.6", "2"))
    with pytest.raises(BadInputError, match="gives layer 0 the density 2"):
        find_preset(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML"),
        ('base = "fast"', "it has no name"),
        ('name = "x"\nbase = 3', "base in .* must be text, got 3"),
        ('name = "x"\nbase = "fast"\nparameters = 3', "parameters in .* must be a table, got 3"),
        ('name = "x"\nbase = "fats"', "unknown preset 'fats'"),
        ('name = "x"\nbase = "evil.py:it"', "a file would run code"),
        ('name = "x"\nbase = "fast"\n[parameters]\nramp = 1', "x.toml: .* no parameter 'ramp'"),
        ('name = "fast"\nbase = "fast"', "is named 'fast', as one of vidsparse itself is"),
    ],
)
def test_what_is_no_preset_file_is_refused(text, message, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        find_preset(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot read the preset .*: No such file"):
        find_preset(str(tmp_path / "none.toml"))


def test_a_preset_with_another_part_cannot_be_said_in_a_file():
    other = PRESETS["balanced"].override({"selector": "top_p", "p": 0.3})
    with pytest.raises(BadInputError, match="no parameter 'p'"):
        changed_parameters(other, PRESETS["balanced"])
