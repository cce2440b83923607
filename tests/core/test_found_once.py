"""What a call finds is found once, and lists of tokens are made without sorting."""

import pytest
import torch

from vidsparse.grid import TokenGrid
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.peak import Peak
from vidsparse.policies.tokens import listed_tokens
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 9, 10, suffix=7)


@pytest.mark.parametrize(
    ("name", "owner", "asked"), [("vmoba", Inputs, "tokens"), ("psa", Peak, "estimate")]
)
def test_a_call_asks_once(name, owner, asked, monkeypatch):
    calls, method = [], getattr(owner, asked)

    def seen(self, argument):
        calls.append(argument)
        return method(self, argument)

    monkeypatch.setattr(owner, asked, seen)
    settings = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0}
    attend = SparseAttention(PRESETS[name].override(settings), strict=True)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 16) for _ in range(3))
    for step, progress in enumerate(Progress.first(2).steps()):
        call = Call(grid=GRID, layer=0, step=step, progress=progress)
        attend(q, k, v, call, lambda *_: q)
        assert len(calls) == step + 1


def test_tokens_are_listed_block_after_block_of_every_head():
    chosen = torch.rand(2, 3, 37, 5) < torch.tensor([0.1, 0.9, 0.4])[:, None, None]
    chosen[1, 2], chosen[0, 0, :, 3] = False, False  # a head, and a block, without any
    counts = chosen.sum(dim=(2, 3))
    listed = listed_tokens(chosen, counts, int(counts.max()))
    assert listed.min() >= 0
    assert listed.max() < 37
    for entry in range(2):
        for head in range(3):
            by_hand = [t for n in range(5) for t in range(37) if chosen[entry, head, t, n]]
            assert listed[entry, head, : counts[entry, head]].tolist() == by_hand
