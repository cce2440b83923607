"""The example of a method of one's own, compared in one command."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("nothing_stays_registered")
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
SMALL = "--frames=5 --height=80 --width=80 --steps=2 --guidance=1 --set=min_tokens=0 --set=block=32"
AT_ONCE = "--set=warmup=0 --set=ramp_until=0"


def test_it_is_compared_with_random_and_the_default(tmp_path, monkeypatch, capsys):
    arguments = ["a red circle", *SMALL.split(), *AT_ONCE.split(), "-o", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    assert runpy.run_path(str(EXAMPLE))["main"]() == 0
    found = json.loads(capsys.readouterr().out)
    psnr = {clip["preset"]: clip["scores"]["psnr"] for clip in found["clips"]}
    assert list(psnr) == ["bound", "random", "balanced"]
    assert psnr["bound"] != psnr["random"]
    assert (tmp_path / "index.html").exists()
