"""xformers beside flash-attn-4, which it takes for another package: stand-ins of both."""

import subprocess
import sys
from pathlib import Path

import pytest

# As xformers 0.0.35 does in xformers/ops/fmha/flash.py.
XFORMERS = """
import importlib.util
if importlib.util.find_spec("flash_attn"):
    import flash_attn.flash_attn_interface
"""
CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from vidsparse.kernels.engines import xformers as ours
{before}
clash = ours.clashes_with_flash_4()
ours.import_beside_flash_4()
import xformers.ops
import flash_attn.cute
print(clash, "flash_attn" in sys.modules, sys.modules["flash_attn"] is not None)
"""


@pytest.fixture
def packages(tmp_path):
    for file, text in {
        "xformers/__init__.py": "",
        "xformers/ops/__init__.py": XFORMERS,
        "flash_attn/cute/__init__.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def run(code, packages):
    return subprocess.run(
        [sys.executable, "-c", code, str(packages)],
        capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip


@pytest.mark.parametrize("before", ["", "import flash_attn.cute"])
def test_both_can_be_imported(packages, before):
    done = run(CHECK.format(before=before), packages)
    assert done.stdout == "True True True\n", done.stderr


def test_without_our_help_they_cannot(packages):
    """If this passes no longer as it is, the work-around has had its day."""
    done = run("import sys; sys.path.insert(0, sys.argv[1]); import xformers.ops", packages)
    assert "flash_attn.flash_attn_interface" in done.stderr


def test_what_does_not_clash_is_left_alone(packages):
    (packages / "flash_attn" / "flash_attn_interface.py").touch()
    done = run(CHECK.format(before="import xformers.ops"), packages)
    assert done.stdout == "False True True\n", done.stderr
    (packages / "xformers" / "ops" / "__init__.py").write_text("raise ImportError('broken')")
    (packages / "flash_attn" / "flash_attn_interface.py").unlink()
    done = run(CHECK.format(before=""), packages)
    assert "ImportError: broken" in done.stderr


def test_doctor_names_the_conflict_and_the_cure(monkeypatch, capsys):
    from vidsparse import cli

    monkeypatch.setattr("vidsparse.kernels.engines.xformers.clashes_with_flash_4", lambda: True)
    assert cli.run(["doctor", "--json"]) == 0
    assert "pip uninstall xformers (or flash-attn-4)" in capsys.readouterr().out
