import json
import subprocess
import sys

import pytest

import vidsparse
from vidsparse.cli.presets import describe


def test_nothing_slow_is_imported_until_it_is_needed():
    code = (
        "import sys; from vidsparse.cli import run; run(['plan', '--grid', '7x20x20']);"
        "run(['presets']); bad = {'diffusers', 'transformers', 'torchmetrics', 'triton'};"
        "print(sorted(bad & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "-h"], ["--version"], ["presets"]])
def test_help_and_tables_exit_zero(cli, arguments):
    code, out, _ = cli(*arguments)
    assert code == 0
    assert out


@pytest.mark.parametrize("arguments", [["nope"], ["plan", "--nope"], ["plan", "--steps", "x"]])
def test_usage_errors_exit_two(cli, arguments):
    assert cli(*arguments).code == 2


def test_presets_are_listed(cli):
    found = json.loads(cli("presets", "--json").out)["presets"]
    assert [preset["name"] for preset in found] == list(vidsparse.PRESETS)


@pytest.mark.parametrize("name", vidsparse.PRESETS)
def test_every_parameter_has_a_meaning(name):
    described = describe(vidsparse.PRESETS[name])
    assert described.keys() == vidsparse.PRESETS[name].parameters().keys()
    assert all(facts["meaning"].endswith(".") for facts in described.values())


def test_a_preset_shows_changed_parameters(cli):
    out = cli("presets", "radial", "--set", "decay=0.4", "--json").out
    assert json.loads(out)["parameters"]["decay"]["value"] == 0.4
    assert "Width of the bands" in cli("presets", "radial").out


def test_doctor_finds_what_the_main_job_needs(cli):
    code, out, _ = cli("doctor", "--json")
    found = json.loads(out)
    assert (code, found["missing"], found["libx264"]) == (0, [], True)
    assert found["engine"] in found["engines"]
    assert found["pipeline"]["bytes"] > 20e6
    assert "shipped model" in cli("doctor").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--density 0.2 --set density=0.3", "density is given twice, as 0.3 and as 0.2"),
        ("--set density=0.2 --set density=0.3", "density is given twice, as 0.2 and as 0.3"),
        ("--set level2=0.5", "preset 'balanced' has no parameter 'level2'"),
        ("--set selector=top_p --set p=0.3 --density 0.2", "p does nothing in preset 'balanced'"),
    ],
)
def test_what_would_do_nothing_is_refused(cli, arguments, message):
    code, out, err = cli("presets", "balanced", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_parts_are_listed_and_changed_with_their_parameters(cli):
    line = "presets balanced --set selector=top_p --set p=0.3 --set compensation=centroid --json"
    found = json.loads(cli(*line.split()).out)
    assert (found["selector"], found["compensation"]) == ("top_p (p=0.3)", "centroid")
    assert found["parameters"]["p"]["part"] == "TopP"
    assert not {"scope", "level2", "tolerance", "choose_every"} & found["parameters"].keys()
