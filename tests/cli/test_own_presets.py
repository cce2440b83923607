"""Presets of one's own on the command line, where it takes the names of presets."""

import json

import pytest

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")
FILE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse import Preset, register_part
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


near = Preset(
    name="near", summary="What is near", source="", policy=Policy(estimator=Near(), density=0.3)
)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(FILE)
    return path


def test_a_file_says_its_parameters(cli, file):
    found = json.loads(cli("presets", f"{file}:near", "--json").out)
    assert found["estimator"] == "Near"
    meaning = {"value": 1.0, "part": "Near", "meaning": "How fast scores fall."}
    assert found["parameters"]["power"] == meaning
    assert "What is near" in cli("presets", f"{file}:near").out


def test_a_part_that_a_file_names_is_called_so(cli, file):
    file.write_text(f"{FILE}\nregister_part('near_blocks', Near)\n")
    assert json.loads(cli("presets", f"{file}:near", "--json").out)["estimator"] == "near_blocks"


def test_plan_counts_it(cli, file):
    found = json.loads(
        cli("plan --grid 7x20x20 --set min_tokens=0 --json", "--preset", f"{file}:near").out
    )
    assert found["preset"] == "near"
    assert 0.28 < found["token_density"] < 0.32


def test_generate_and_python_run_it(cli, file, small, tmp_path):
    made = cli(
        "generate", "a red circle", "--preset", f"{file}:near", *small, "--strict",
        "-o", tmp_path / "near.mp4",
    )  # fmt: skip
    assert made.code == 0, made.err
    with vidsparse.sparsify(load_pipeline(), "near", density=0.4) as session:
        assert session.preset.policy.density == 0.4
        assert session.preset.own_code


@pytest.mark.parametrize("command", ["presets", "plan --grid 7x20x20 --preset", "compare --preset",
                                     "generate --preset", "inspect --preset"])  # fmt: skip
def test_errors_are_sentences_everywhere(cli, file, command):
    for name, message in {
        f"{file}:far": "has no 'far': it has near",
        f"{file.with_name('none.py')}:far": "cannot read presets from",
    }.items():
        code, out, err = cli(command, name)
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())


def test_what_a_comparison_makes_with_a_file_is_made_again_once_that_changes(
    cli, file, small, tmp_path
):
    def compare():
        return cli(
            "compare", "a red circle", "--preset", f"{file}:near,random", *small, "--json",
            "-o", tmp_path / "report",
        )  # fmt: skip

    first = json.loads(compare().out)
    assert [clip["preset"] for clip in first["clips"]] == ["near", "random"]
    written = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("report/clips/*/*.npy")}
    assert {"near.npy", "random.npy", "dense.npy"} <= written.keys()
    assert "were done before" in compare().err
    file.write_text(FILE.replace("-((at", "((at"))
    assert "made again, since these changed: preset" in compare().err
    now = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("report/clips/*/*.npy")}
    assert {name for name in now if now[name] != written[name]} == {"near.npy"}
