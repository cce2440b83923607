"""xformers: dense attention, and plans that are block-diagonal, as per-frame attention is.

Never taken by ``auto``: whether a plan is block-diagonal is in its lists, and looking there waits
for the device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from itertools import pairwise

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.plan import BlockPlan


def xformers_unsupported(case: Case) -> list[str]:
    """Why the ``xformers`` engine cannot run a case; empty when it can, if the plan suits it."""
    reasons = []
    if problem := _problem():
        reasons.append(problem)
    if case.device_type != "cuda":
        reasons.append(f"xformers needs a CUDA device, the tensors are on {case.device_type}")
    if case.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"xformers takes fp16 and bf16, not {case.dtype}")
    if case.offsets:
        reasons.append("xformers cannot run blocks of unequal size")
    return reasons


def xformers_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ``plan`` says; arguments and result as in ``reference_attention``.

    Raises:
        BadInputError: For a plan that is not dense and not block-diagonal; of other cases that
            ``xformers_unsupported`` speaks of, none comes here.
    """
    segments = diagonal_segments(plan)
    if segments is None:
        raise BadInputError(
            "engine 'xformers' runs only dense and block-diagonal plans shared by all heads; "
            "choose another engine for this plan"
        )
    from xformers.ops import fmha  # pyright: ignore[reportMissingImports]

    batch, heads, _, head_dim = q.shape
    queries, keys = ([end - start for start, end in side] for side in segments)
    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(queries * batch, keys * batch)
    rows = (x.detach().transpose(1, 2).reshape(1, -1, heads, head_dim) for x in (q, k, v))
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(
        *rows, attn_bias=bias, scale=scale
    )
    out = out.view(batch, -1, heads, head_dim).transpose(1, 2)
    if not return_lse:
        return out, None
    lse = packed_lse(lse, queries * batch)
    return out, lse.view(heads, batch, plan.q_len).transpose(0, 1)


def packed_lse(lse: Tensor, lengths: list[int]) -> Tensor:
    """Log-sum-exp of spans one after the other, ``(heads, sum(lengths))``.

    Args:
        lse: ``(1, heads, at least sum(lengths))``, as xformers' flash kernels give it, or
            ``(spans, heads, at least the longest)``, as its cutlass kernels do.
        lengths: Of the spans.
    """
    if lse.shape[0] == 1:
        return lse[0, :, : sum(lengths)].contiguous()
    return torch.cat([part[:, :n] for part, n in zip(lse, lengths, strict=True)], dim=1)


def diagonal_segments(
    plan: BlockPlan,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
    """The query and the key spans of a block-diagonal plan; None when it is not one.

    A dense plan is one span. Reads the plan back from the device.
    """
    mask = plan.to_block_mask()
    if mask.shape[:2] != (1, 1):
        if not bool((mask == mask[:1, :1]).all()):
            return None
        mask = mask[:1, :1]
    rows = mask[0, 0].cpu()
    changes = (rows[1:] != rows[:-1]).any(dim=-1).nonzero()[:, 0].add(1).tolist()
    q_edges = [0, *changes, rows.shape[0]]
    spans: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    next_key = 0
    for first, last in pairwise(q_edges):
        listed = rows[first].nonzero()[:, 0].tolist()
        if listed != list(range(next_key, next_key + len(listed))):
            return None
        next_key += len(listed)
        spans[0].append((first * plan.q_block, min(last * plan.q_block, plan.q_len)))
        start = listed[0] * plan.kv_block
        spans[1].append((start, min(next_key * plan.kv_block, plan.kv_len)))
    return spans if next_key == rows.shape[1] else None


def clashes_with_flash_4() -> bool:
    """Whether xformers takes the folder of flash-attn-4 for an older flash-attn, and fails.

    diffusers imports xformers where it is installed, and fails with it.
    """
    if importlib.util.find_spec("xformers") is None or "xformers.ops" in sys.modules:
        return False
    if importlib.util.find_spec("flash_attn") is None:
        return False
    return importlib.util.find_spec("flash_attn.flash_attn_interface") is None


def import_beside_flash_4() -> None:
    """Import xformers without a look at flash-attn-4: it then takes PyTorch's own kernels.

    Does nothing where the two do not clash. Whatever stops the import is left to the next one.
    """
    if not clashes_with_flash_4():
        return
    hidden = {name: sys.modules[name] for name in sys.modules if _is_flash(name)}
    for name in hidden:
        del sys.modules[name]
    sys.modules["flash_attn"] = None  # pyright: ignore[reportArgumentType] as if it were not there
    try:
        with contextlib.suppress(Exception):
            importlib.import_module("xformers.ops")
    finally:
        del sys.modules["flash_attn"]
        sys.modules.update(hidden)


def _is_flash(name: str) -> bool:
    return name == "flash_attn" or name.startswith("flash_attn.")


@functools.cache
def _problem() -> str | None:
    """Why xformers cannot be used, if it cannot: it is tied to one build of torch."""
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install 'vidsparse[xformers]')"
    try:
        import_beside_flash_4()
        fmha = importlib.import_module("xformers.ops").fmha
        kernels = [op for op in fmha.ALL_FW_OPS if op.is_available()]
        if not any(fmha.BlockDiagonalMask in op.SUPPORTED_ATTN_BIAS_TYPES for op in kernels):
            return "the CUDA kernels of xformers do not load (install the build for this torch)"
    except ModuleNotFoundError as error:
        cure = f"pip install {error.name}"
        if _is_flash(error.name or ""):
            cure = "pip uninstall flash-attn-4, which it takes for an older flash-attn"
        return f"xformers does not import here: {error} ({cure})"
    except Exception as error:  # whatever stops its import stops us
        reason = " ".join(str(error).split())
        return f"xformers does not import here: {reason} (install the build for this torch)"
    return None
