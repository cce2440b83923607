"""What flash-attn-4's block-sparse kernels rely on, and a flash-attn that is broken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.flash import flash_dense, flash_unsupported, masked_lists
from vidsparse.kernels.engines.table import choose_engine

HOPPER = Case(device_type="cuda", arch=(9, 0))


def pairs_as_its_kernels_compute_them(plan):
    """How often each (query, key) is computed; -1 where memory past the keys is taken for a key.

    Its kernels walk the masked list, then the full list, each from its end, and mask the end of
    the sequence in the first block of each list only.
    """
    lists = (masked_lists(plan), (plan.kv_count, plan.kv_index))
    batch, heads = plan.kv_count.shape[:2]
    width = plan.num_kv_blocks * plan.kv_block
    times = torch.zeros(batch, heads, plan.q_len, width, dtype=torch.long)
    for b in range(batch):
        for h in range(heads):
            for m in range(plan.num_q_blocks):
                rows = slice(m * plan.q_block, (m + 1) * plan.q_block)
                for count, index in lists:
                    listed = index[b, h, m, : int(count[b, h, m])].tolist()
                    for step, block in enumerate(reversed(listed)):
                        end = (block + 1) * plan.kv_block
                        end = min(end, plan.kv_len) if step == 0 else end
                        times[b, h, rows, block * plan.kv_block : end] += 1
    return times


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_pair_of_a_plan_is_computed_once_and_nothing_past_the_end(oracle, data):
    draw = data.draw
    lengths = draw(st.integers(1, 70)), draw(st.integers(1, 90))
    blocks = 16 * draw(st.integers(1, 3)), 16 * draw(st.integers(1, 3))
    plan = oracle.plan(draw(st.integers(1, 2)), draw(st.integers(1, 2)), *lengths, *blocks)
    times = pairs_as_its_kernels_compute_them(plan)
    assert torch.equal(times[..., : plan.kv_len], plan.to_dense_mask().long())
    assert int(times[..., plan.kv_len :].sum()) == 0


def broken():
    raise ImportError("flash_attn_2_cuda.so: undefined\n symbol: _ZN3c10")


@pytest.fixture
def broken_flash_attn(monkeypatch):
    monkeypatch.setattr("vidsparse.kernels.engines.flash._installed", broken)


@pytest.mark.usefixtures("broken_flash_attn")
def test_a_flash_attn_that_does_not_import_is_a_reason_and_no_crash():
    (reason,) = flash_unsupported(HOPPER)
    assert "flash_attn does not import here: flash_attn_2_cuda.so: undefined symbol" in reason
    assert choose_engine(HOPPER).engine != "flash"
    with pytest.raises(BadInputError, match="does not import here"):
        flash_dense(*(torch.zeros(1, 1, 1, 64),) * 3, scale=1.0)


@pytest.mark.usefixtures("broken_flash_attn")
def test_auto_attends_on_a_cpu_beside_a_flash_attn_that_does_not_import(oracle):
    q, k, v = oracle.qkv(1, 1, 30, 30, 8)
    assert attention(q, k, v, oracle.plan(1, 1, 30, 30, 16, 16)).isfinite().all()
