"""The work of a comparison, as far as no run shows it."""

import weakref
from types import SimpleNamespace
from typing import Any

from vidsparse.comparison.pieces import CompareWork
from vidsparse.metrics import scores


class Pipe:
    """Refers to itself, as a pipeline does whose modules have hooks."""

    def __init__(self):
        self.itself = self


def test_the_model_is_off_the_device_before_networks_come(monkeypatch):
    there = []
    monkeypatch.setattr(scores, "Scorer", lambda *_, **how: there.append(pipe() is not None))
    job = SimpleNamespace(fps=8, device="cpu")
    finished: Any = SimpleNamespace(spec=SimpleNamespace(job=job, weights=None, judge=None))
    work = CompareWork(finished, reporter=SimpleNamespace())  # type: ignore[arg-type]
    work._pipe = Pipe()
    pipe = weakref.ref(work._pipe)
    work._make_scorer()
    assert there == [False]
