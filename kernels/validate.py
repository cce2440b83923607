"""The checks of a block plan: slow, complete, in the user's words."""

import torch
from torch import Tensor

from vidsparse.kernels.plan import BlockPlan, Partial


def validated(plan: BlockPlan) -> BlockPlan:
    """The plan, if nothing is wrong with it, reading it back; for tests and for new policies.

    Raises:
        ValueError: Naming what is wrong: a dtype, a shape, an empty row, an index that no block
            has, a block listed twice, or offsets that do not cover the sequence.
    """
    _check_lists(plan)
    for side, length, blocks in (
        ("q", plan.q_len, plan.num_q_blocks),
        ("kv", plan.kv_len, plan.num_kv_blocks),
    ):
        offsets = getattr(plan, f"{side}_offsets")
        if offsets is not None:
            _check_offsets(f"{side}_offsets", offsets, length, blocks, plan)
    if plan.pooled is not None:
        _check_pooled(plan)
    if plan.partial is not None:
        _check_partial(plan, plan.partial)
    return plan


def _check_lists(plan: BlockPlan) -> None:
    count, index, blocks = plan.kv_count, plan.kv_index, plan.num_kv_blocks
    _check_int32("kv_count", count)
    _check_int32("kv_index", index)
    expected = (*index.shape[:2], plan.num_q_blocks)
    if tuple(count.shape) != expected or index.dim() != 4 or index.shape[:3] != expected:
        raise ValueError(
            f"a plan of {plan.num_q_blocks} query blocks needs kv_count (B, H, M) and kv_index "
            f"(B, H, M, K), got {tuple(count.shape)} and {tuple(index.shape)}"
        )
    width = index.shape[-1]
    if bool((count < 1).any()) or bool((count > width).any()):
        raise ValueError(
            f"every query block must list between 1 and {width} key blocks, got counts from "
            f"{int(count.min())} to {int(count.max())}"
        )
    used = torch.arange(width, device=index.device) < count[..., None]
    listed = index[used]
    if bool((listed < 0).any()) or bool((listed >= blocks).any()):
        raise ValueError(
            f"key block indices must be in [0, {blocks}), got "
            f"{int(listed.min())} to {int(listed.max())}"
        )
    if int(plan.to_block_mask().sum()) != int(count.sum()):
        raise ValueError("a query block lists the same key block twice")
    rises = index.diff(dim=-1) > 0
    if plan.partial is not None:
        rises |= torch.arange(1, width, device=index.device) == _first_partial(plan)[..., None]
    if not bool((rises | ~used[..., 1:]).all()):
        raise ValueError("key blocks must be listed in ascending order")


def _first_partial(plan: BlockPlan) -> Tensor:
    """Where the partial blocks of each list start, ``(B|1, H|1, M)``."""
    assert plan.partial is not None
    return plan.kv_count - plan.partial.count


def _check_partial(plan: BlockPlan, partial: Partial) -> None:
    """Whole blocks first, then partial ones; a short last block among those, if there are any."""
    index, count, number = plan.kv_index, plan.kv_count, len(partial.bits)
    if bool((partial.count < 0).any()) or bool((partial.count > count).any()):
        raise ValueError("a list has no more partial blocks than blocks")
    at = torch.arange(index.shape[-1], device=index.device)
    used, later = at < count[..., None], at >= _first_partial(plan)[..., None]
    pattern = partial.pattern[used]
    if bool((pattern < 0).any()) or bool((pattern >= number).any()):
        raise ValueError(f"patterns must be in [0, {number})")
    if bool((partial.pattern[used & ~later] != 0).any()) or bool((partial.bits[0] != -1).any()):
        raise ValueError("whole blocks, which come first, have pattern 0, which is all ones")
    short = (index == plan.num_kv_blocks - 1) & (plan.kv_len % plan.kv_block > 0)
    if bool((short & used & ~later & (partial.count > 0)[..., None]).any()):
        raise ValueError("a short last block must be partial in lists that have partial blocks")


def _check_offsets(name: str, offsets: Tensor, length: int, blocks: int, plan: BlockPlan) -> None:
    _check_int32(name, offsets)
    _check_leading(name, offsets, blocks + 1, plan)
    starts, ends = offsets[..., 0], offsets[..., -1]
    if bool((starts != 0).any()) or bool((ends != length).any()):
        raise ValueError(
            f"{name} must cover the sequence from 0 to {length}, got "
            f"{int(starts.min())} to {int(ends.min())}"
        )
    if bool((offsets.diff(dim=-1) < 0).any()):
        raise ValueError(f"{name} must not decrease")


def _check_pooled(plan: BlockPlan) -> None:
    assert plan.pooled is not None
    for name in ("key", "value"):
        mean = getattr(plan.pooled, name)
        if mean.dim() != 4 or mean.shape[2] != plan.num_kv_blocks:
            raise ValueError(
                f"pooled.{name} must be (batch, heads, {plan.num_kv_blocks}, head_dim), got "
                f"{tuple(mean.shape)}"
            )
    if plan.pooled.size.shape[-1] != plan.num_kv_blocks:
        raise ValueError(
            f"pooled.size must have {plan.num_kv_blocks} entries in its last dimension, got "
            f"{tuple(plan.pooled.size.shape)}"
        )


def _check_int32(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int32:
        raise ValueError(f"{name} must be int32, got {tensor.dtype}")


def _check_leading(name: str, tensor: Tensor, last: int, plan: BlockPlan) -> None:
    if tensor.dim() != 3 or tensor.shape[-1] != last:
        raise ValueError(f"{name} must be (B, H, {last}), got {tuple(tensor.shape)}")
    lists = plan.kv_index.shape[:2]
    for mine, theirs in zip(tensor.shape[:2], lists, strict=True):
        if mine != theirs and 1 not in (mine, theirs):
            raise ValueError(
                f"{name} is for {tuple(tensor.shape[:2])} (batch, heads), the lists for "
                f"{tuple(lists)}"
            )
