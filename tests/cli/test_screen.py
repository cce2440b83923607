"""What is shown while a generation runs."""

import io
from functools import partial

import pytest
import torch
from rich.console import Console

from vidsparse.cli.screen import step_bar
from vidsparse.stats import CallKey, Stats


@pytest.fixture
def shown(monkeypatch):
    """What a terminal would be sent."""
    text = io.StringIO()
    terminal = partial(Console, file=text, force_terminal=True, width=100)
    monkeypatch.setattr(
        "vidsparse.cli.screen.Console", lambda stderr, highlight: terminal(highlight=highlight)
    )
    return text


def test_the_bar_ends_with_the_mean_density_as_the_summary(shown):
    stats = Stats()
    for step, density in enumerate((1.0, 0.25)):
        stats.record(CallKey(step, 0, "cond"), None, torch.tensor([density]))
    with step_bar("draft", 2, stats) as on_step:
        on_step(1, 2)
        on_step(2, 2)
    last = shown.getvalue().rpartition("draft")[2]
    assert "mean density" in last
    assert "0.625" in last
    assert "0.250" not in last


@pytest.mark.parametrize("stats", [None, Stats()])
def test_without_a_sparse_call_no_density_is_shown(shown, stats):
    with step_bar("dense", 1, stats) as on_step:
        on_step(0, 1)
        on_step(1, 1)
    assert "density" not in shown.getvalue()
