"""A session's statistics say how many tokens a block had."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

SMALL, LARGE = TokenGrid(3, 8, 8), TokenGrid(3, 12, 12, 0, 7)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def ran(preset, *grids):
    engine = SparseAttention(preset.override({"min_tokens": 0}))
    engine.start_generation()
    for grid in grids:
        q, k, v = torch.randn(3, 1, grid.tokens, 2, 16)
        call = Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.9))
        engine(q, k, v, call, dense)
    return engine


@pytest.mark.parametrize(("changes", "block"), [({}, 64), ({"block": 32}, 32)])
def test_the_block_that_ran_is_said_for_each_grid(changes, block):
    engine = ran(PRESETS["draft"].override(changes), SMALL, LARGE)
    assert engine.stats.blocks == {"3x8x8": block, "3x12x12+7": block}
    assert engine.stats.to_dict()["blocks"] == engine.stats.blocks
    first = engine.stats.summary().splitlines()[0]
    assert first.endswith(f"of the steps dense, blocks of {block} tokens")
    engine.start_generation()
    assert engine.stats.blocks == {}


def test_clusters_are_of_no_one_size():
    engine = ran(PRESETS["semantic"], SMALL)
    assert engine.stats.blocks == {}
    assert "blocks of" not in engine.stats.summary()
    assert engine.stats.mean_density < 1
