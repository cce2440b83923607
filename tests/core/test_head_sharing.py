"""Heads that several devices share: who has which, and what each sees of the others."""

import pytest
import torch

from vidsparse.head_sharing import HeadShare, same_work
from vidsparse.state import LayerState


def shares(order, devices):
    """The shares of all devices; what one sends, all have in the end."""
    each = len(order) // devices

    def exchange(x):
        return torch.stack([whole_of[id(x)][:, list(part)] for part in parts])

    parts = [order[i * each : (i + 1) * each] for i in range(devices)]
    whole_of = {}
    made = [
        HeadShare(order=order, devices=devices, rank=rank, exchange=exchange)
        for rank in range(devices)
    ]
    return made, whole_of


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (0, 1, 2, 2)])
def test_all_heads_and_the_own_ones(order):
    made, whole_of = shares(order, 2)
    heads = max(order) + 1
    whole = torch.randn(2, heads, 3)
    for share in made:
        own = share.mine(whole)
        assert torch.equal(own, whole[:, list(share.own)])
        whole_of[id(own)] = whole
        assert torch.equal(share.everyone(own), whole)
        common = whole[:, :1]
        assert share.everyone(common) is common
        assert share.mine(common) is common


def test_what_is_remembered_goes_with_its_head():
    before, whole_of = shares((0, 1, 2, 3), 2)
    after, _ = shares((0, 3, 1, 2), 2)
    whole = torch.randn(1, 4, 5)
    for old, new in zip(before, after, strict=True):
        state = LayerState()
        state.follow(old)
        own = old.mine(whole)
        whole_of[id(own)] = whole
        state.put("labels", own, step=0)
        state.follow(new)
        assert torch.equal(state.tensors["labels"], new.mine(whole))


def test_the_busiest_device_over_the_mean():
    (share, _), _ = shares((0, 1, 2, 3), 2)
    assert float(share.imbalance(torch.tensor([0.9, 0.7, 0.2, 0.2]))) == pytest.approx(1.6)
    assert float(share.imbalance(torch.tensor([0.3]))) == pytest.approx(1.0)


@pytest.mark.parametrize(("heads", "devices"), [(8, 2), (12, 4), (40, 8), (24, 3)])
def test_devices_get_equal_numbers_and_about_equal_work(heads, devices):
    generator = torch.Generator().manual_seed(heads)
    for _ in range(20):
        density = torch.rand(heads, generator=generator).square().tolist()
        order = same_work(density, devices)
        assert sorted(order) == list(range(heads))
        places = heads // devices
        starts = range(0, heads, places)
        work = [sum(density[head] for head in order[i : i + places]) for i in starts]
        in_turn = [sum(density[i : i + places]) for i in starts]
        assert max(work) <= max(in_turn) + 1e-9
        assert max(work) / (sum(work) / devices) < 1.25
