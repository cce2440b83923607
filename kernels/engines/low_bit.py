"""Attention in eight bits: INT8 scores, FP8 weights and values, under any block plan.

    S = (Q8 K8^T) * q_scale[row] * k_scale[block]      INT8 products, summed in int32
    O = (e4m3(448 * P) V8) * v_scale[channel] / (448 l)  FP8 products, 128 keys summed at a time

* Keys lose their mean over all tokens first: it adds the same to every score of a row, so the
  output is as before, and the log-sum-exp gets it back (SageAttention, arXiv 2410.02367).
* A query has a scale of its own, a block of keys has one, a channel of values has one.
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

import torch
from torch import Tensor

from vidsparse.kernels.dispatch import use_triton
from vidsparse.kernels.plan import BlockPlan, block_of_token

LOG2E = 1.4426950408889634
LOG2_448 = 8.807354922057604
LEAST = 1e-10  # no block's largest magnitude is taken for less
# the order in which FP8 values stand for Hopper, in every 16 tokens: see triton/quantize.py
INTERLEAVED = tuple(8 * a + 2 * t + c for t in range(4) for a in range(2) for c in range(2))


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
        key_block: Keys that share a scale.
        value: e4m3 or float16 ``(batch, heads, width, head_dim)``, zero from ``kv_len`` on; a
            view with tokens contiguous for e4m3.
        value_scale: Of each channel, float32 ``(batch, heads, head_dim)``.
        interleaved: Whether every 16 tokens of ``value`` stand in the order ``INTERLEAVED``.
    """

    query: Tensor
    query_scale: Tensor
    shift: Tensor
    key: Tensor
    key_scale: Tensor
    key_block: int
    value: Tensor
    value_scale: Tensor
    interleaved: bool


def quantize(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_block: int = 128,
    value_dtype: torch.dtype = torch.float8_e4m3fn,
    interleaved: bool = False,
    impl: str = "auto",
) -> Quantized:
    """Bring Q, K and V to eight bits, without a host sync.

    Args:
        q: ``(batch, heads, q_len, head_dim)``, any strides.
        k: ``(batch, heads, kv_len, head_dim)``.
        v: ``(batch, heads, kv_len, head_dim)``.
        scale: Score scale.
        key_block: Keys that share a scale, a power of two from 16 on.
        value_dtype: ``torch.float8_e4m3fn`` or ``torch.float16``.
        interleaved: Put the tokens of ``value`` in the order that the Hopper kernel reads.
        impl: "triton", "reference", or "auto": Triton on CUDA.
    """
    run = _quantize_reference
    if use_triton(impl, q):
        from vidsparse.kernels.triton.quantize import launch as run
    query, query_scale, shift, key, key_scale, value, value_scale = run(
        q, k, v, scale=scale, block=key_block, value_dtype=value_dtype,
        interleaved=interleaved,
    )  # fmt: skip
    return Quantized(
        query=query, query_scale=query_scale, shift=shift, key=key, key_scale=key_scale,
        key_block=key_block, value=value, value_scale=value_scale, interleaved=interleaved,
    )  # fmt: skip


def _quantize_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    block: int,
    value_dtype: torch.dtype,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    """The same in plain torch."""
    query, key, value = q.float(), k.float(), v.float()
    mean = key.sum(dim=2) / k.shape[2]
    shift = (query * mean[:, :, None]).sum(dim=-1) * scale
    key = key - mean[:, :, None]

    most = query.abs().amax(dim=-1).clamp(min=LEAST)
    query = (query * _over(127, most)[..., None]).round().to(torch.int8)
    query_scale = most * (scale * LOG2E / 127)

    pad = -k.shape[2] % block
    blocks = torch.nn.functional.pad(key, (0, 0, 0, pad)).unflatten(2, (-1, block))
    most = blocks.abs().amax(dim=(-2, -1)).clamp(min=LEAST)
    blocks = (blocks * _over(127, most)[..., None, None]).round().to(torch.int8)
    key = blocks.flatten(2, 3)[:, :, : k.shape[2]]

    value = torch.nn.functional.pad(value, (0, 0, 0, pad))
    most_value = value.abs().amax(dim=2).clamp(min=LEAST)
    value = value * _over(448, most_value)[:, :, None]
    if interleaved:
        value = value.unflatten(2, (-1, 16))[:, :, :, list(INTERLEAVED)].flatten(2, 3)
    value = value.clamp(-448, 448).to(value_dtype)
    query, key, value = (x.contiguous() for x in (query, key, value))
    return query, query_scale, shift, key, most / 127, value, most_value / 448


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
        x: Not interleaved.
        plan: What to compute; pooled stand-ins take no part.
        keys: In a tile. A row's listed keys lie end to end, and the last tile goes first: what the
            running maximum is when a weight is rounded depends on it.
        dtype: Of the output.

    Returns:
        ``(batch, heads, q_len, head_dim)`` and the log-sum-exp, float32 ``(batch, heads, q_len)``.
    """
    scores = x.query.float() @ x.key.float().mT  # exact: sums stay below 2 ** 24
    block = torch.arange(plan.kv_len, device=scores.device) // x.key_block
    scores = scores * (x.query_scale[..., None] * x.key_scale[:, :, block][:, :, None])
    listed, tile = _listed(plan, scores.shape[:2], keys)
    m = torch.full_like(x.query_scale, float("-inf"))
    mass, out = torch.zeros_like(m), torch.zeros(*x.query.shape, device=m.device)
    value = x.value[:, :, : plan.kv_len].float()
    for t in range(int(tile.max()), -1, -1):
        s = scores.masked_fill(~(listed & (tile == t)), float("-inf"))
        m_new = torch.maximum(m, s.amax(dim=-1))
        safe = m_new.where(m_new.isfinite(), 0)
        p = torch.exp2(s - (safe - LOG2_448)[..., None])
        alpha = torch.exp2(m - safe)
        mass = mass * alpha + p.sum(dim=-1)
        rounded = p.clamp(max=448).to(x.value.dtype).float()
        out = out * alpha[..., None] + rounded @ value
        m = m_new
    share = torch.where(mass > 0, 1 / mass, 0)
    lse = (m - LOG2_448 + mass.log2()) / LOG2E + x.shift
    out = out * share[..., None] * x.value_scale[:, :, None]
    return out.to(dtype), lse.where(mass > 0, float("-inf"))


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
        plan: What to compute; pooled stand-ins take no part.
        scale: Score scale.
        return_lse: Whether to return the log-sum-exp.
        keys: In a tile: 128 in the Hopper kernel.
        value_dtype: ``torch.float8_e4m3fn`` or ``torch.float16``, of weights and values.
    """
    x = quantize(
        q, k, v, scale=scale, key_block=key_block_of(plan),
        value_dtype=value_dtype, impl="reference",
    )  # fmt: skip
    out, lse = attend_quantized(x, plan, keys=keys, dtype=q.dtype)
    return torch.empty_like(q).copy_(out), lse if return_lse else None


def key_block_of(plan: BlockPlan) -> int:
    """Keys that share a scale: as many as never straddle two blocks, from 64 to 128 of them."""
    return 64 if plan.kv_offsets is not None or plan.kv_block % 128 else 128
