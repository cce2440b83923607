import io
import json
import os
import subprocess
import sys

import pytest

import vidsparse
from vidsparse.cli import main, screen
from vidsparse.cli.presets import describe
from vidsparse.errors import BadInputError
from vidsparse.presets import find_preset

COMMANDS = (
    "generate",
    "compare",
    "inspect",
    "plan",
    "tune",
    "calibrate",
    "bench",
    "presets",
    "doctor",
)


def test_nothing_slow_is_imported_until_it_is_needed():
    code = (
        "import sys; from vidsparse.cli import run; run(['plan', '--grid', '7x20x20']);"
        "run(['presets']); bad = {'diffusers', 'transformers', 'torchmetrics', 'triton'};"
        "print(sorted(bad & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_help_does_not_wait_for_torch():
    """One process for all: what one of them imported would still be there after it."""
    code = (
        "import sys; from vidsparse.cli import run\n"
        "for command in sys.argv[1:]:\n"
        "    code = run([*command.split(), '--help'])\n"
        "    slow = sorted({'torch', 'diffusers', 'scipy'} & sys.modules.keys())\n"
        "    print(command, code, slow, file=sys.stderr)"
    )
    commands = ["", *COMMANDS]
    arguments = [sys.executable, "-c", code, *commands]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{command} 0 []" for command in commands]
    for command in commands:
        assert f"Usage: vidsparse {command}".rstrip() in done.stdout


def test_a_shell_is_told_how_to_complete(monkeypatch):
    environment = {"_VIDSPARSE_COMPLETE": "complete_bash", "COMP_WORDS": "vidsparse gen",
                   "COMP_CWORD": "1"}  # fmt: skip
    command = [sys.executable, "-m", "vidsparse"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.split() == ["generate"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_json_for_a_program(cli, command):
    assert "--json" in cli(command, "--help").out


def test_the_public_names_are_there_though_imported_late():
    assert set(vidsparse.__all__) <= {
        name for name in vidsparse.__all__ if getattr(vidsparse, name)
    }
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        vidsparse.nope  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "-h"], ["--version"], ["presets"]])
def test_help_and_tables_exit_zero(cli, arguments):
    code, out, _ = cli(*arguments)
    assert code == 0
    assert out


@pytest.mark.parametrize("arguments", [["nope"], ["plan", "--nope"], ["plan", "--steps", "x"]])
def test_usage_errors_exit_two(cli, arguments):
    assert cli(*arguments).code == 2


HUGE = "x" * 100_000


@pytest.mark.parametrize(
    "arguments",
    [
        [HUGE],
        ["plan", f"--{HUGE}"],
        ["plan", "--steps", HUGE],
        ["plan", "--grid", HUGE],
        ["plan", "--grid", "7x20x20", "--preset", HUGE],
        ["plan", "--grid", "7x20x20", "--set", f"{HUGE}=1"],
        ["generate", "--model", HUGE],
        ["generate", "a red circle", "-o", HUGE],
        ["compare", "a red circle", "--seeds", HUGE],
        ["compare", "a red circle", "--weights", f"dino={HUGE}"],
    ],
)
def test_no_message_repeats_a_huge_input(cli, arguments):
    code, out, err = cli(*arguments)
    assert (code in (1, 2), out) == (True, "")
    assert err.startswith("vidsparse: ")
    assert len(err) < 2500
    assert err.count("\n") == 1


def test_an_error_repeats_no_huge_input_in_python_either():
    with pytest.raises(BadInputError) as caught:
        find_preset(HUGE)
    assert 1000 < len(str(caught.value)) < 2500
    assert str(caught.value).startswith("unknown preset 'xxx")


EVIL = "red\x1b[2J\x1b]0;title\x07\x9b31m\u202ecircle"


def test_what_commands_a_terminal_is_written_out(capsys):
    table = screen.plain_table(prompt="left")
    table.add_row(EVIL)
    for show in (
        lambda: screen.answer(EVIL),
        lambda: screen.answer(table),
        lambda: screen.answer_json({"prompt": EVIL}),
        lambda: screen.note(EVIL),
        lambda: screen.complain(EVIL),
    ):
        show()
        seen = "".join(capsys.readouterr())
        assert "\\u001b" in seen.replace("\n", "")
        assert not set(seen) & set("\x1b\x07\x9b\u202e")
    with screen.step_bar(EVIL, 2, None) as on_step:
        on_step(2, 2)
    assert not set("".join(capsys.readouterr())) & set("\x07\x9b\u202e")


def test_json_that_is_made_harmless_says_the_same(capsys):
    screen.answer_json({"prompt": EVIL})
    assert json.loads(capsys.readouterr().out) == {"prompt": EVIL}


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


def test_a_terminal_that_lacks_the_letters_of_a_prompt_loses_nothing(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("vidsparse.cli.run", lambda arguments: print("a red circle ü") or 0)
    with pytest.raises(SystemExit):
        main()
    shown.flush()
    assert shown.buffer.getvalue() == b"a red circle \\xfc\n"
