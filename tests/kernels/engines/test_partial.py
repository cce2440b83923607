"""Plans with partial blocks: every engine that takes them, by hand, and those that refuse."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flex import block_mask
from vidsparse.kernels.engines.table import ENGINES, choose_engine
from vidsparse.kernels.plan import Partial
from vidsparse.kernels.planning.partial import pack_pairs, plan_of_pairs, with_whole
from vidsparse.kernels.validate import validated

ON_CPUS = [] if torch.cuda.is_available() else ["native"]
TAKE = ["cpu", "reference", "triton", *ON_CPUS]  # where tests run
# batch, heads, q_len, kv_len, head_dim, q_block, kv_block
SHAPES = [
    (1, 2, 70, 70, 16, 16, 16),
    (2, 2, 129, 100, 32, 64, 32),
    (1, 1, 100, 161, 24, 32, 48),
    (1, 2, 200, 150, 16, 48, 128),
    (1, 1, 64, 128, 16, 64, 64),
]


def random_pairs(q_len, kv_len, q_block, kv_block):
    """Whole, partial and skipped blocks, patterns that repeat, and two rows without any key."""
    rows, columns = -(-q_len // q_block), -(-kv_len // kv_block)
    kinds = torch.rand(4, q_block, kv_block) < torch.tensor([0.0, 1.0, 0.5, 0.1])[:, None, None]
    drawn = kinds[torch.randint(4, (rows, columns))]
    mask = drawn.transpose(1, 2).reshape(rows * q_block, columns * kv_block)[:q_len, :kv_len]
    mask = mask.clone()
    mask[:, -1] = True
    mask[[3, q_len // 2]] = False
    return mask


def plan_of(mask, q_block, kv_block, **more) -> Any:  # with partial blocks, so not all is None
    rows, columns = -(-mask.shape[0] // q_block), -(-mask.shape[1] // kv_block)
    return plan_of_pairs(
        lambda q, k: mask[q, k],
        q_len=mask.shape[0], kv_len=mask.shape[1], q_block=q_block, kv_block=kv_block,
        candidates=torch.ones(rows, columns, dtype=torch.bool), **more,
    )  # fmt: skip


def by_hand(q, k, v, mask, scale):
    scores = (q.double() @ k.double().mT * scale).masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    return scores.softmax(dim=-1).nan_to_num(0.0) @ v.double(), lse


@pytest.mark.parametrize("engine", TAKE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_partial_blocks_are_dense_attention_under_the_mask(oracle, device, engine, shape):
    q, k, v = oracle.qkv(*shape[:5], device=device)
    mask = random_pairs(*shape[2:4], *shape[5:])
    plan = validated(plan_of(mask, *shape[5:]))
    assert plan.partial is not None
    assert torch.equal(plan.to_dense_mask()[0, 0], mask)
    out, lse = attention(q, k, v, plan, engine=engine, scale=0.3, return_lse=True)
    exact, exact_lse = by_hand(q, k, v, mask, 0.3)
    oracle.assert_as_exact(out, exact, torch.float32, times=8)
    assert (out[:, :, [3, shape[2] // 2]] == 0).all()
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    seen = exact_lse.isfinite()
    oracle.assert_as_exact(lse[seen], exact_lse[seen], torch.float32, times=8)
    oracle.assert_as_exact(
        attention(q, k, v, plan, engine=engine, scale=0.3), exact, torch.float32, 8
    )


def per_head_plan(batch, heads, q_len, kv_len, q_block, kv_block):
    """Lists and patterns of each head."""
    made = [plan_of(random_pairs(q_len, kv_len, q_block, kv_block), q_block, kv_block)
            for _ in range(batch * heads)]  # fmt: skip
    width = max(plan.kv_index.shape[-1] for plan in made)
    starts = torch.tensor([0, *(len(plan.partial.bits) for plan in made[:-1])]).cumsum(0)

    def joined(tensors, widen=False):
        wide = [F.pad(x, (0, width - x.shape[-1])) if widen else x for x in tensors]
        return torch.cat(wide).unflatten(0, (batch, heads)).flatten(2, 3)

    patterns = [
        torch.where(plan.partial.pattern > 0, plan.partial.pattern + int(start), 0).int()
        for plan, start in zip(made, starts, strict=True)
    ]
    return validated(dataclasses.replace(
        made[0],
        kv_count=joined([plan.kv_count for plan in made]),
        kv_index=joined([plan.kv_index for plan in made], True),
        partial=Partial(
            count=joined([plan.partial.count for plan in made]),
            pattern=joined(patterns, True),
            bits=torch.cat([plan.partial.bits for plan in made]),
        ),
    ))  # fmt: skip


@pytest.mark.parametrize("engine", ["cpu", "triton", *ON_CPUS])
def test_heads_may_differ_and_stand_ins_take_part(oracle, device, engine):
    q, k, v = oracle.qkv(2, 2, 90, 110, 16, device=device)
    plan = per_head_plan(2, 2, 90, 110, 16, 32)
    plan = dataclasses.replace(plan, pooled=oracle.pooled(k, v, 32))
    out, lse = attention(q, k, v, plan, engine=engine, return_lse=True)
    exact, exact_lse = attention(
        q.double(), k.double(), v.double(), plan, engine="reference", return_lse=True
    )
    oracle.assert_as_exact(out, exact, torch.float32, times=8)
    seen = exact_lse.isfinite()
    assert torch.equal(lse.isfinite(), seen)
    oracle.assert_as_exact(lse[seen], exact_lse[seen], torch.float32, times=8)


@pytest.mark.parametrize("engine", TAKE)
def test_gradients(oracle, device, engine):
    leaves = [x.requires_grad_() for x in oracle.qkv(1, 2, 70, 90, 16, device=device)]
    mask = random_pairs(70, 90, 32, 32)
    q, k, v = leaves
    out = attention(q, k, v, plan_of(mask, 32, 32), engine=engine)
    direction = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, direction)
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    exact, _ = by_hand(q, k, v, mask, 16**-0.5)
    mask_of_rows = mask.any(dim=-1)[:, None]  # by hand a row without keys is 0 / 0
    expected = torch.autograd.grad(
        exact.where(mask_of_rows, 0.0), (q, k, v), direction.double(), materialize_grads=True
    )
    for mine, truth in zip(got, expected, strict=True):
        oracle.assert_as_exact(mine, truth.nan_to_num(0.0), torch.float32, times=32)


def test_blocks_that_a_rule_fills_are_whole_and_cost_no_patterns(oracle):
    frame = torch.arange(64) // 16
    plan = plan_of(frame[:, None] >= frame, 16, 16)
    assert plan.partial is None
    assert plan.kv_count[0, 0].tolist() == [1, 2, 3, 4]
    every = plan_of(torch.ones(50, 70, dtype=torch.bool), 16, 32)
    assert every.partial is None
    assert every.density == 1.0


def test_equal_patterns_are_kept_once():
    near = (torch.arange(160)[:, None] - torch.arange(160)).abs() < 20
    plan = plan_of(near, 16, 16)
    assert plan.partial is not None
    assert len(plan.partial.bits) == 1 + 4  # one and two blocks away, on either side
    assert int(plan.partial.count.sum()) == 2 * 9 + 2 * 8
    assert plan.density == pytest.approx((10 + 2 * 9 + 2 * 8) / 100)  # of what is computed


def test_a_block_may_be_whole_whatever_the_rule_says_a_short_one_too():
    mask = torch.arange(40)[:, None] >= torch.arange(40)
    whole = torch.zeros(3, 3, dtype=torch.bool)
    whole[0, 1:] = True
    plan = validated(plan_of(mask, 16, 16, whole=whole))
    expected = mask.clone()
    expected[:16, 16:] = True
    assert torch.equal(plan.to_dense_mask()[0, 0], expected)
    assert plan.kv_index[0, 0, 0, :3].tolist() == [1, 0, 2]  # the short one must come last
    again = validated(with_whole(plan_of(mask, 16, 16), whole[None, None]))
    assert torch.equal(again.to_dense_mask()[0, 0], expected)
    every = with_whole(plan_of(mask, 16, 16), torch.ones(1, 2, 3, 3, dtype=torch.bool))
    assert every.partial is None
    assert every.density == 1.0


def test_bits_are_where_the_plan_says():
    tile = torch.zeros(1, 3, 48, dtype=torch.bool)
    tile[0, 1, [0, 31, 40]] = True
    words = pack_pairs(tile)
    assert words.shape == (1, 3, 2)
    assert words[0].tolist() == [[0, 0], [1 - 2**31, 2**8], [0, 0]]


def test_too_many_patterns_are_refused_with_their_number(monkeypatch):
    monkeypatch.setattr("vidsparse.kernels.planning.partial.MOST_BYTES", 500)
    with pytest.raises(BadInputError, match=r"more than \d+ different patterns of blocks of 16"):
        plan_of(torch.rand(160, 160) < 0.5, 16, 16)


@pytest.mark.parametrize("engine", ["flash", "int8", "xformers"])
def test_other_engines_refuse(oracle, engine):
    plan = plan_of(random_pairs(256, 256, 128, 128), 128, 128)
    q, k, v = oracle.qkv(1, 1, 256, 256, 64)
    with pytest.raises(BadInputError, match="computes whole blocks alone, and some of this plan"):
        attention(q, k, v, plan, engine=engine)


def test_auto_takes_one_that_can(oracle):
    for device_type in ("cpu", "cuda"):
        case = Case(device_type=device_type, partial=True)
        assert ENGINES[choose_engine(case).engine].takes_partial
    hopper = Case(device_type="cuda", arch=(9, 0), head_dim=64, partial=True)
    assert choose_engine(hopper).engine != "flash"
    q, k, v = oracle.qkv(1, 1, 100, 100, 16)
    plan = plan_of(random_pairs(100, 100, 16, 16), 16, 16)
    truth = attention(q, k, v, plan, engine="reference")
    torch.testing.assert_close(attention(q, k, v, plan), truth, atol=1e-5, rtol=1e-5)


def test_blocks_cannot_be_observed(oracle):
    plan = plan_of(random_pairs(64, 64, 16, 16), 16, 16)
    q, k, v = oracle.qkv(1, 1, 64, 64, 16)
    with pytest.raises(BadInputError, match="observing needs whole blocks"):
        attention(q, k, v, plan, observe=True)


def test_flex_is_handed_the_same_mask():
    from torch.nn.attention.flex_attention import create_mask

    mask = random_pairs(300, 400, 128, 128)
    plan = plan_of(mask, 128, 128)
    handed = block_mask(plan)
    seen = create_mask(handed.mask_mod, 1, 1, 300, 400, device="cpu")[0, 0]
    listed = plan.to_block_mask()[0, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(seen & listed[:300, :400], mask)
    assert plan.partial is not None
    whole = plan.kv_count - plan.partial.count
    assert torch.equal(handed.full_kv_num_blocks, whole)
    assert torch.equal(handed.kv_num_blocks, plan.partial.count)
    first = plan.kv_index.gather(-1, whole.long().clamp(max=2)[..., None])[..., 0]
    has = plan.partial.count > 0
    assert torch.equal(handed.kv_indices[..., 0][has], first[has])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": torch.tensor([[[9, 0, 0, 0]]]).int()}, "no more partial blocks than blocks"),
        ({"bits": torch.zeros(9, 16, 1).int()}, "pattern 0, which is all ones"),
    ],
)
def test_wrong_plans_are_told(changes, message):
    plan = plan_of(torch.arange(64)[:, None] >= torch.arange(64), 16, 16)
    wrong = dataclasses.replace(plan, partial=dataclasses.replace(plan.partial, **changes))
    with pytest.raises(ValueError, match=message):
        validated(wrong)


def test_tensors_that_do_not_fit_are_refused(oracle):
    plan = plan_of(torch.arange(64)[:, None] >= torch.arange(64), 16, 16)
    q, k, v = oracle.qkv(1, 1, 64, 64, 16)
    partial = plan.partial
    assert partial is not None
    short = dataclasses.replace(partial, bits=partial.bits[:, :8])
    with pytest.raises(BadInputError, match=r"bits \(patterns, 16, 1\)"):
        attention(q, k, v, dataclasses.replace(plan, partial=short))
    wide = dataclasses.replace(partial, bits=partial.bits.long())
    with pytest.raises(BadInputError, match="must be int32"):
        attention(q, k, v, dataclasses.replace(plan, partial=wide))
    edges = torch.tensor([[[0, 16, 32, 48, 64]]]).int()
    with pytest.raises(BadInputError, match="partial blocks are of equal size"):
        attention(q, k, v, dataclasses.replace(plan, kv_offsets=edges))
