"""A pipeline on a GPU that is not the current one: kernels and events go where its tensors are."""

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch

from vidsparse import sparse_attention
from vidsparse.current_gpu import current
from vidsparse.grid import TokenGrid
from vidsparse.presets import find_preset
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.state import PendingValue
from vidsparse.stats import Stopwatch

SECOND = torch.device("cuda", 1)


class Event:
    """An event that says where it was recorded."""

    recorded: ClassVar[list[object]] = []

    def __init__(self, **_):
        pass

    def record(self, stream):
        self.recorded.append(stream)


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setattr(Event, "recorded", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return Event


def test_a_device_is_current_for_the_time_of_a_block(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: f"made current: {device}")
    assert current(SECOND) == "made current: cuda:1"
    with current("cpu"):
        pass


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_every_call_runs_with_the_device_of_its_tensors_current(monkeypatch, density):
    inside, seen = [], []

    @contextmanager
    def watched(device):
        inside.append(device)
        yield
        inside.pop()

    def dense(q, k, v):
        seen.append(list(inside))
        return q

    monkeypatch.setattr(sparse_attention, "current", watched)
    preset = find_preset("draft").override({"block": 16, "min_tokens": 0, "density": density})
    attention = SparseAttention(preset)
    attention.observers.append(lambda *_: seen.append(list(inside)))
    q, k, v = (torch.randn(1, 64, 2, 8) for _ in range(3))
    at = Call(grid=TokenGrid(4, 4, 4), layer=5, step=3, progress=Progress.alone(0.9))
    attention(q, k, v, at, dense)
    assert seen == [[q.device]]
    assert not inside


def test_time_is_that_of_the_device_that_does_the_work(events):
    with Stopwatch(SECOND):
        pass
    assert events.recorded == ["stream of cuda:1"] * 2


def test_a_value_is_there_once_its_own_device_has_sent_it(events, monkeypatch):
    class There:
        is_cuda, device, shape, dtype = True, SECOND, (), torch.bool

    class Pinned:
        def copy_(self, x, non_blocking):
            pass

    monkeypatch.setattr(torch, "empty", lambda *_, **how: Pinned())
    PendingValue(There())  # type: ignore[arg-type]
    assert events.recorded == ["stream of cuda:1"]
