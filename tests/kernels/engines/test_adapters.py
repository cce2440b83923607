"""What the adapters to other packages build and refuse; tests/gpu runs them."""

import dataclasses

import pytest
import torch

from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flash import flash_unsupported, masked_lists
from vidsparse.kernels.engines.flex import block_mask, flex_unsupported
from vidsparse.kernels.engines.xformers import diagonal_segments, xformers_unsupported
from vidsparse.kernels.plan import BlockPlan

HOPPER = Case(device_type="cuda", arch=(9, 0))


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("vidsparse.kernels.engines.flash._installed", lambda: True)
    monkeypatch.setattr("vidsparse.kernels.engines.xformers._problem", lambda: None)


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr("vidsparse.kernels.engines.flash._installed", lambda: False)
    assert flash_unsupported(HOPPER) == [
        "flash-attn-4 is not installed (pip install 'vidsparse[flash]')"
    ]


@pytest.mark.usefixtures("installed")
def test_what_flash_can_run_it_does_not_refuse():
    assert flash_unsupported(HOPPER) == []
    assert flash_unsupported(dataclasses.replace(HOPPER, head_dim=64, q_block=256)) == []
    assert flash_unsupported(dataclasses.replace(HOPPER, arch=(10, 0), q_block=256)) == []


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": (8, 0)}, "needs a Hopper or Blackwell GPU"),
        ({"device_type": "cpu", "arch": None}, "needs a Hopper or Blackwell GPU"),
        ({"dtype": torch.float32}, "takes fp16 and bf16, not torch.float32"),
        ({"head_dim": 80}, "head_dim 64, 96 and 128 here, not 80"),
        ({"offsets": True}, "cannot run blocks of unequal size"),
        ({"q_block": 64}, "query blocks of a multiple of 128, not 64"),
        ({"kv_block": 64}, "key blocks of 128, not 64"),
        ({"arch": (10, 0)}, "query blocks of a multiple of 256, not 128"),
    ],
)
def test_flash_names_what_it_cannot_run(changes, reason):
    reasons = flash_unsupported(dataclasses.replace(HOPPER, **changes))
    assert len(reasons) == 1
    assert reason in reasons[0]


@pytest.mark.usefixtures("installed")
def test_every_reason_is_given_at_once():
    case = dataclasses.replace(HOPPER, dtype=torch.float32, kv_block=48, offsets=True)
    assert len(flash_unsupported(case)) == 3
    assert len(flex_unsupported(case)) == 2
    assert len(xformers_unsupported(case)) == 2


def test_lists_of_masked_blocks_are_empty(oracle):
    plan = oracle.plan(2, 3, 70, 90, 16, 16)
    none, nothing = masked_lists(plan)
    assert none.shape == plan.kv_count.shape
    assert nothing.shape == (*plan.kv_count.shape, 1)
    assert int(none.sum()) == 0


def test_flex_gets_the_plans_own_lists_as_full_blocks(oracle):
    plan = oracle.plan(1, 2, 300, 400, 128, 64)
    mask = block_mask(plan)
    assert torch.equal(mask.full_kv_indices, plan.kv_index)
    assert mask.full_kv_num_blocks is plan.kv_count
    assert int(mask.kv_num_blocks.sum()) == 0
    assert mask.BLOCK_SIZE == (128, 64)
    assert mask.seq_lengths == (300, 400)


def test_flex_masks_have_one_shape_whatever_the_density():
    narrow = torch.zeros(1, 1, 3, 2, dtype=torch.int32)
    plan = BlockPlan(
        kv_count=narrow[..., 0] + 2, kv_index=narrow + torch.arange(2, dtype=torch.int32),
        q_len=300, kv_len=400, q_block=128, kv_block=64,
    )  # fmt: skip
    indices = block_mask(plan).full_kv_indices
    assert indices.shape == (1, 1, 3, 7)
    assert indices[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0]


def diagonal(*groups, q_len=90, kv_len=90):
    """A plan of blocks of 16 whose groups of query blocks read their own key blocks."""
    keep = torch.zeros(1, 1, -(-q_len // 16), -(-kv_len // 16), dtype=torch.bool)
    for rows, columns in groups:
        keep[..., slice(*rows), slice(*columns)] = True
    return BlockPlan.from_mask(keep, q_len=q_len, kv_len=kv_len, q_block=16, kv_block=16)


def test_per_frame_plans_are_found_to_be_block_diagonal():
    plan = diagonal(((0, 2), (0, 2)), ((2, 5), (2, 5)), ((5, 6), (5, 6)))
    spans = [(0, 32), (32, 80), (80, 90)]
    assert diagonal_segments(plan) == (spans, spans)


def test_a_dense_plan_is_one_segment():
    assert diagonal_segments(diagonal(((0, 6), (0, 6)))) == ([(0, 90)], [(0, 90)])


@pytest.mark.parametrize(
    "groups",
    [
        (((0, 3), (0, 4)), ((3, 6), (3, 6))),  # they overlap
        (((0, 3), (3, 6)), ((3, 6), (0, 3))),  # off the diagonal
        (((0, 3), (0, 3)), ((3, 6), (4, 6))),  # a key block that nobody reads
    ],
)
def test_other_plans_are_not_block_diagonal(groups):
    assert diagonal_segments(diagonal(*groups)) is None


def test_heads_with_plans_of_their_own_are_not_block_diagonal():
    one = diagonal(((0, 3), (0, 3)), ((3, 6), (3, 6))).to_block_mask()
    keep = torch.cat([one, torch.ones_like(one)], dim=1)
    plan = BlockPlan.from_mask(keep, q_len=90, kv_len=90, q_block=16, kv_block=16)
    assert diagonal_segments(plan) is None
