"""Presets and parts from outside the package: found by name, and refused in words."""

import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import vidsparse
from vidsparse import presets
from vidsparse.errors import BadInputError
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")
FILE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse import Preset
from vidsparse.policies.estimator import Estimate, Estimator, Measure
from vidsparse.policies.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Near(Estimator):
    """Blocks that are near.

    Attributes:
        power: How fast scores fall.
    """

    power: float = 1.0
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs):
        at = torch.arange(inputs.blocks.number)
        return Estimate(scores=-((at[:, None] - at).abs()[None, None].float() ** self.power))


near = Preset(name="near", summary="", source="", policy=Policy(estimator=Near(), density=0.3))
number = 2
'''


@dataclass(frozen=True, kw_only=True)
class Last(Estimator):
    """The last blocks.

    Attributes:
        slope: How much better each is than the one before.
    """

    slope: float = 1.0
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        return Estimate(scores=self.slope * torch.arange(inputs.blocks.number)[None, None, None])


def preset(name="mine", density=0.25, **changes):
    policy = Policy(estimator=Last(**changes), density=density)
    return vidsparse.Preset(name=name, summary="", source="", policy=policy)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(FILE)
    return path


def test_a_registered_preset_is_found_by_its_name():
    mine = vidsparse.register(preset())
    assert presets.find_preset("mine") is mine is vidsparse.PRESETS["mine"]
    assert list(vidsparse.PRESETS)[-1] == "mine"
    with pytest.raises(BadInputError, match="did you mean mine"):
        presets.find_preset("mime")


def test_registering_again_needs_to_be_meant():
    vidsparse.register(preset())
    vidsparse.register(preset())  # the same
    with pytest.raises(BadInputError, match=r"'mine', as one of a call of vidsparse.register is"):
        vidsparse.register(preset(density=0.5))
    vidsparse.register(preset(density=0.5), replace=True)
    assert presets.find_preset("mine").policy.density == 0.5


@pytest.mark.parametrize("name", ["balanced", "temporal", "dense", "sheet"])
def test_names_of_the_package_are_taken_for_good(name):
    for replace in (False, True):
        with pytest.raises(BadInputError, match=f"named '{name}', as one of vidsparse itself"):
            vidsparse.register(preset(name), replace=replace)
    assert presets.PRESETS.get(name) in (None, *presets.METHODS)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "../a", "a.py", "-a", "ä"])
def test_a_name_has_to_be_one_that_files_and_lists_can_hold(name):
    with pytest.raises(BadInputError, match="cannot be named"):
        vidsparse.register(preset(name))


def test_what_is_no_preset_is_refused():
    with pytest.raises(BadInputError, match=r"register takes a vidsparse.Preset, got 'balanced'"):
        vidsparse.register("balanced")  # pyright: ignore[reportArgumentType]


def test_the_table_cannot_be_written_to():
    with pytest.raises(TypeError):
        vidsparse.PRESETS["mine"] = preset()  # pyright: ignore[reportIndexIssue]


def test_a_preset_of_a_file(file):
    found = presets.find_preset(f"{file}:near")
    assert found.name == "near"
    assert presets.find_preset("near") is found
    assert presets.find_preset(f"{file}:near") is found  # the file did not run again
    assert found.override({"power": "2"}).parameters()["power"] == 2.0


def test_a_file_that_changed_is_read_again(file):
    before = presets.find_preset(f"{file}:near")
    file.write_text(FILE.replace("density=0.3", "density=0.4"))
    os.utime(file, ns=(1, 1))
    after = presets.find_preset(f"{file}:near")
    assert after.policy.density == 0.4
    assert after.own_code != before.own_code


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":far", "has no 'far': it has near"),
        ("", "say which preset of .*my_file.py, as FILE.py:NAME: it has near"),
        (":", "say which preset of"),
        (":number", "number of .*my_file.py is no vidsparse.Preset but int: it has near"),
        (":Near", "is no vidsparse.Preset but ABCMeta"),
    ],
)
def test_a_file_without_the_preset(file, name, message):
    with pytest.raises(BadInputError, match=message):
        presets.find_preset(f"{file}{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nundefined", "cannot be run: NameError in line 3: name 'undefined'"),
        ("a = 1\nb = (", "cannot be run: SyntaxError in line 2"),
        ("import no_such_module_there", "ModuleNotFoundError in line 1: No module named"),
        ("mine = 1", "mine of .* is no vidsparse.Preset but int: it makes no vidsparse.Preset"),
        (FILE.replace('"near"', '"draft"').replace("near =", "mine ="), "is named 'draft', as one"),
        (
            FILE.replace("density=0.3", "density=3") + "mine = near",
            "BadInputError in line 30: density must be",
        ),
    ],
)
def test_a_file_that_makes_none(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    for _ in range(2):  # the second time as the first
        with pytest.raises(BadInputError, match=message):
            presets.find_preset(f"{tmp_path / 'bad.py'}:mine")


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot read presets from .*none.py: No such file"):
        presets.find_preset(f"{tmp_path / 'none.py'}:mine")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(BadInputError, match=r"folder.py: Is a directory"):
        presets.find_preset(f"{tmp_path / 'folder.py'}:mine")


def test_two_files_cannot_share_a_name(file):
    presets.find_preset(f"{file}:near")
    other = file.with_name("other.py")
    other.write_text(FILE)
    with pytest.raises(BadInputError, match=r"other.py:near is named 'near', as one of .*my_file"):
        presets.find_preset(f"{other}:near")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that offers presets, by the lines of its entry points."""

    def install(*lines):
        info = tmp_path / "near_methods-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: near-methods\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[vidsparse.presets]", *lines]))
        (tmp_path / "near_methods.py").write_text(FILE)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "near_methods", raising=False)

    return install


def test_a_preset_of_an_installed_package(package):
    package("near = near_methods:near")
    with pytest.raises(BadInputError, match="did you mean near"):
        presets.find_preset("neat")
    assert "near_methods" not in sys.modules  # not before it is asked for
    assert presets.find_preset("near").policy.density == 0.3
    assert presets.register_offered() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "near = near_methods:far",
            "the package near-methods offers the preset 'near', which",
        ),
        ("near = no_such_methods:near", r"cannot be loaded \(ModuleNotFoundError: No module named"),
        (
            "near = near_methods:number",
            "near_methods:number of the package near-methods is no v",
        ),
        ("far = near_methods:near", "offers the preset 'far', which calls itself 'near'"),
    ],
)
def test_a_package_that_offers_what_it_has_not(package, line, message):
    package(line)
    with pytest.raises(BadInputError, match=message):
        presets.find_preset(line.partition(" ")[0])
    (problem,) = presets.register_offered()
    assert message.partition(" \\(")[0][:30] in problem or "ModuleNotFoundError" in problem


def test_a_package_cannot_take_a_name_of_the_table(package):
    package("balanced = near_methods:near")
    assert presets.find_preset("balanced") in presets.METHODS
    (problem,) = presets.register_offered()
    assert "offers the preset 'balanced', which calls itself 'near'" in problem


def test_a_part_by_name():
    vidsparse.register_part("last", Last)
    vidsparse.register_part("last", Last)  # a file that runs again
    changed = vidsparse.PRESETS["draft"].override({"estimator": "last", "slope": "3"})
    assert changed.policy.estimator == Last(slope=3.0)
    with pytest.raises(BadInputError, match="'pooled' is the name of the estimator Pooled of vid"):
        vidsparse.register_part("pooled", Last)
    with pytest.raises(BadInputError, match="cannot be named 'my last'"):
        vidsparse.register_part("my last", Last)


def test_what_is_no_part_is_refused():
    class Plain(Pooled):
        pass

    @dataclass(frozen=True)
    class Silent(Estimator):
        def estimate(self, inputs: Inputs) -> Estimate: ...

    for wrong, message in {
        int: "one of Order, Estimator, Selector, Compensation, Correction, got <class 'int'>",
        Last(): "a class below one of",
        Plain: "Plain has to be a frozen dataclass",
        Silent: "Silent does not say what its scores mean",
    }.items():
        with pytest.raises(BadInputError, match=message):
            vidsparse.register_part("wrong", wrong)  # pyright: ignore[reportArgumentType]


def test_finished_work_knows_the_code_of_parts_that_are_not_of_the_package(file):
    assert {each.own_code for each in presets.METHODS} == {""}
    assert preset().own_code
    assert preset().override({"slope": 2}).own_code == preset().own_code
    near = presets.find_preset(f"{file}:near")
    assert near.own_code not in ("", preset().own_code)
    assert near.own_code in repr(near)  # which is what finished work is found by
    file.write_text("edited while it runs")
    assert near.override({"power": 1}) == near
