"""Attention in eight bits: INT8 scores, FP8 weights and values, under any block plan.

    S = (Q8 K8^T) * q_scale[row] * k_scale[block]      INT8 products, summed in int32
    O = (e4m3(448 * P) V8) * v_scale[channel] / (448 l)  FP8 products, 128 keys summed at a time

* Keys lose their mean over all tokens first: it adds the same to every score of a row, so the
  output is as before, and the log-sum-exp gets it back (SageAttention, arXiv 2410.02367).
* A query has a scale of its own, a block of keys has one, a channel of values has one. Where tiles
  are filled from many clusters all keys of a head share one, with the means that stand in.
* Weights, relative to the running maximum, fill e4m3's range (SageAttention2, arXiv 2411.10958).
  GPUs without FP8 take values and weights in float16, with the same scales.

Relative errors of one call against float64: .038 on Gaussian data (4,096 tokens, results of
``benchmarks/low_bit.py``). On q, k and v of the shipped pipeline (2,800 tokens, six calls) .016, of
which FP8 weights and values alone make .014 and INT8 scores alone .008. There, with each key
block's own mean removed in place of one mean of all, and its score added back, it is .0157; with
FP8 scores .051.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.engines.reference import skipped_blocks
from vidsparse.kernels.engines.stand_ins import add_skipped
from vidsparse.kernels.plan import BlockPlan, Pooled, block_of_token

LOG2E = 1.4426950408889634
LOG2_448 = 8.807354922057604
PANEL = 16  # tokens whose values stand together for clusters
LEAST = 1e-10  # no block's largest magnitude is taken for less
# where keys share a scale, a score's unit is no smaller, so that -2 ** 30 of them weigh nothing
FLOOR = 2**-25
# the order in which FP8 values stand for Hopper, in every 16 tokens: see triton/quantize.py
INTERLEAVED = tuple(8 * a + 2 * t + c for t in range(4) for a in range(2) for c in range(2))

Layout = Literal["plain", "interleaved", "panels"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantized:
    """Q, K and V in eight bits.

    Attributes:
        query: int8 ``(batch, heads, q_len, head_dim)``.
        query_scale: What a query's integers are multiplied by to give scores in base 2 once the
            keys' scale is in too, ``scale * log2(e)`` included; float32 ``(batch, heads, q_len)``.
        shift: What the keys' lost mean took from each row's scores, natural log, float32
            ``(batch, heads, q_len)``.
        key: int8 ``(batch, heads, kv_len, head_dim)``.
        key_scale: Of each block of keys, float32 ``(batch, heads, ceil(kv_len / key_block))``.
        key_block: Keys that share a scale; all of them when None.
        value: e4m3 or float16 ``(batch, heads, width, head_dim)``, zero from ``kv_len`` on; a
            view with tokens contiguous for e4m3. Of panels see ``layout``.
        value_scale: Of each channel, float32 ``(batch, heads, head_dim)``.
        layout: How ``value`` lies: "plain"; "interleaved", every 16 tokens in the order
            ``INTERLEAVED``; or "panels", those 16 beside each other for one channel after the
            other, ``(batch, heads, width, 64 or 128)`` bytes with zeros for channels that are not
            there, and with the 16 bytes in which TMA puts them where a product reads no swizzle.
        mean_key: Of the blocks' means that stand in, as ``key``, or None.
        mean_value: As ``value``, or None.
    """

    query: Tensor
    query_scale: Tensor
    shift: Tensor
    key: Tensor
    key_scale: Tensor
    key_block: int | None
    value: Tensor
    value_scale: Tensor
    layout: Layout
    mean_key: Tensor | None = None
    mean_value: Tensor | None = None


def quantize(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_block: int | None = 128,
    value_dtype: torch.dtype = torch.float8_e4m3fn,
    layout: Layout = "plain",
    pooled: Pooled | None = None,
    impl: str = "auto",
) -> Quantized:
    """Bring Q, K and V to eight bits, without a host sync.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        scale: Score scale.
        key_block: Keys that share a scale, a power of two from 16 on; None for all of them.
        value_dtype: ``torch.float8_e4m3fn`` or ``torch.float16``.
        layout: How values are to lie: as a kernel reads them, panels in e4m3.
        pooled: Means that stand in, which share the scales of keys and values; with ``key_block``
            None.
        impl: "triton", "reference", or "auto": Triton on CUDA.
    """
    run = _quantize_reference
    if use_triton(impl, q):
        from vidsparse.kernels.triton.quantize import launch as run
    query, query_scale, shift, key, key_scale, value, value_scale, means = run(
        q, k, v, scale=scale, block=key_block, value_dtype=value_dtype, layout=layout,
        pooled=pooled, floor=FLOOR,
    )  # fmt: skip
    return Quantized(
        query=query, query_scale=query_scale, shift=shift, key=key, key_scale=key_scale,
        key_block=key_block, value=value, value_scale=value_scale, layout=layout,
        mean_key=means[0], mean_value=means[1],
    )  # fmt: skip


def _quantize_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    block: int | None,
    value_dtype: torch.dtype,
    layout: Layout,
    pooled: Pooled | None,
    floor: float,
) -> tuple[Any, ...]:
    """The same in plain torch."""
    query, key, value = q.float(), k.float(), v.float()
    mean = (key.sum(dim=2) / k.shape[2])[:, :, None]
    shift = (query * mean).sum(dim=-1) * scale

    key = key - mean
    whole = block or k.shape[2]
    pad = -k.shape[2] % whole
    blocks = torch.nn.functional.pad(key, (0, 0, 0, pad)).unflatten(2, (-1, whole))
    most_key, most_value = blocks.abs().amax(dim=(-2, -1)), value.abs().amax(dim=2)
    sides = [(key, value)]
    if pooled is not None:
        key, value = pooled.key.float() - mean, pooled.value.float()
        most_key = torch.maximum(most_key, key.abs().amax(dim=(-2, -1))[..., None])
        most_value = torch.maximum(most_value, value.abs().amax(dim=2))
        sides.append((key, value))
    most_key, most_value = most_key.clamp(min=LEAST), most_value.clamp(min=LEAST)
    most = query.abs().amax(dim=-1).clamp(min=LEAST)
    if block is None:
        most = torch.maximum(most, _over(floor * 16129, scale * LOG2E * most_key))
    query = (query * _over(127, most)[..., None]).round().to(torch.int8).contiguous()
    query_scale = most * (scale * LOG2E / 127)
    made = []
    for key, value in sides:
        by = _over(127, most_key).repeat_interleave(whole, dim=2)[:, :, : key.shape[2], None]
        value = value * _over(448, most_value)[:, :, None]
        value = torch.nn.functional.pad(value, (0, 0, 0, -value.shape[2] % (block or 128)))
        value = _laid_out(value.clamp(-448, 448), layout).to(value_dtype).contiguous()
        made.append(((key * by).round().to(torch.int8).contiguous(), value))
    key, value = made[0]
    means = made[1] if pooled is not None else (None, None)
    return query, query_scale, shift, key, most_key / 127, value, most_value / 448, means


def _laid_out(value: Tensor, layout: Layout) -> Tensor:
    """Values ``(batch, heads, width, head_dim)`` as ``Quantized.layout`` says."""
    if layout == "plain":
        return value
    groups = value.unflatten(2, (-1, 16))[:, :, :, list(INTERLEAVED)]
    if layout == "interleaved":
        return groups.flatten(2, 3)
    wide = 64 if value.shape[-1] <= 64 else 128
    groups = torch.nn.functional.pad(groups, (0, wide - value.shape[-1]))
    at = torch.arange(PANEL * wide, device=value.device)
    panels = groups.mT.flatten(-2)[..., _swizzled(at, wide)]
    return panels.unflatten(-1, (PANEL, wide)).flatten(2, 3)


def _swizzled(at: Tensor, wide: int) -> Tensor:
    """Where TMA puts byte ``at`` of rows of ``wide`` bytes: sixteens change places within eight."""
    return at ^ ((at >> 7) % (wide // 16) << 4)


def _over(number: float, x: Tensor) -> Tensor:
    """The quotient, rounded once: torch multiplies by the reciprocal of a tensor."""
    return torch.full_like(x, number) / x


def attend_quantized(
    x: Quantized,
    plan: BlockPlan,
    *,
    keys: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Attend with what ``quantize`` made, in plain torch and with the kernels' roundings.

    Args:
        x: Plain.
        plan: What to compute; stand-ins take part, after all keys, if ``x`` has them.
        keys: In a tile. A row's listed keys lie end to end, and the last tile goes first: what the
            running maximum is when a weight is rounded depends on it.
        dtype: Of the output.

    Returns:
        ``(batch, heads, q_len, head_dim)`` and the log-sum-exp, float32 ``(batch, heads, q_len)``.
    """
    scores = _scores(x, x.key)
    listed, tile = _listed(plan, scores.shape[:2], keys)
    m = torch.full_like(x.query_scale, float("-inf"))
    mass, out = torch.zeros_like(m), torch.zeros(*x.query.shape, device=m.device)
    never = float("-inf")
    steps = [
        (scores.masked_fill(~(listed & (tile == t)), never), x.value)
        for t in range(int(tile.max()), -1, -1)
    ]
    if x.mean_key is not None and plan.pooled is not None:
        assert x.mean_value is not None
        bias = plan.pooled.size.float().log2().unsqueeze(-2)
        scores = (_scores(x, x.mean_key) + bias).masked_fill(~skipped_blocks(plan), never)
        for at in range(0, scores.shape[-1], keys):
            tile = slice(at, at + keys)
            steps.append((scores[..., tile], x.mean_value[:, :, tile]))
    for s, value in steps:
        m_new = torch.maximum(m, s.amax(dim=-1))
        safe = m_new.where(m_new.isfinite(), 0)
        p = torch.exp2(s - (safe - LOG2_448)[..., None])
        alpha = torch.exp2(m - safe)
        mass = mass * alpha + p.sum(dim=-1)
        rounded = p.clamp(max=448).to(x.value.dtype).float()
        out = out * alpha[..., None] + rounded @ value[:, :, : s.shape[-1]].float()
        m = m_new
    share = torch.where(mass > 0, 1 / mass, 0)
    lse = (m - LOG2_448 + mass.log2()) / LOG2E + x.shift
    out = out * share[..., None] * x.value_scale[:, :, None]
    return out.to(dtype), lse.where(mass > 0, float("-inf"))


def _scores(x: Quantized, key: Tensor) -> Tensor:
    """Scores in base 2, ``(batch, heads, q_len, keys)``; sums stay below 2 ** 24, so are exact."""
    block = torch.arange(key.shape[2], device=key.device) // (x.key_block or key.shape[2])
    scores = x.query.float() @ key.float().mT
    return scores * (x.query_scale[..., None] * x.key_scale[:, :, block][:, :, None])


def _listed(plan: BlockPlan, shape: torch.Size, keys: int) -> tuple[Tensor, Tensor]:
    """Which keys each query reads, and in which tile, bool and int64 ``(.., q_len, kv_len)``."""
    rows = block_of_token(plan.q_len, plan.q_block, plan.q_offsets)
    columns = block_of_token(plan.kv_len, plan.kv_block, plan.kv_offsets)
    mask = plan.to_block_mask().expand(*shape, -1, -1)
    device = mask.device
    rows = rows.to(device).expand(*shape, -1)[..., None].expand(-1, -1, -1, mask.shape[-1])
    columns = columns.to(device).expand(*shape, -1)[:, :, None].expand(-1, -1, plan.q_len, -1)
    listed = mask.gather(2, rows).gather(3, columns)
    return listed, (listed.cumsum(dim=-1) - 1).clamp(min=0) // keys


def low_bit_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
    keys: int = 128,
    value_dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor | None]:
    """Quantise and attend in plain torch; arguments and result as in ``reference_attention``.

    Args:
        q: ``(batch, heads, q_len, head_dim)``.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        plan: What to compute, stand-ins included.
        scale: Score scale.
        return_lse: Whether to return the log-sum-exp.
        keys: In a tile: 128 in the Hopper kernel.
        value_dtype: ``torch.float8_e4m3fn`` or ``torch.float16``, of weights and values.
    """
    key_block = key_block_of(plan)
    within = plan.pooled if key_block is None else None
    x = quantize(
        q, k, v, scale=scale, key_block=key_block, value_dtype=value_dtype, pooled=within,
        impl="reference",
    )  # fmt: skip
    out, lse = attend_quantized(x, plan, keys=keys, dtype=q.dtype)
    out = torch.empty_like(q).copy_(out)
    if plan.pooled is not None and within is None:
        out, lse = add_skipped(q, out, lse, plan, scale=scale, impl="reference")
    return out, lse if return_lse else None


def key_block_of(plan: BlockPlan) -> int | None:
    """Keys that share a scale: all of them in clusters, else 64 or 128 that no block cuts."""
    if plan.q_offsets is not None or plan.kv_offsets is not None:
        return None
    return 64 if plan.kv_block % 128 else 128
