"""Each head keeps as many blocks in every row as hold a share of the mass of a few exact rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.head_sharing import all_of, own_of
from vidsparse.kernels.planning.exact_mass import exact_mass
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.kernels.planning.select import Lists, select_row_budget
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.sampled import draw_rows
from vidsparse.policies.selectors import OfShare, Selection

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

ROWS = 256  # whose mass is averaged at a time, the most that a GPU's kernel takes


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledP(OfShare):
    """How many blocks a head needs, some exact rows say; which they are, the scores do.

    ProxyAttn, arXiv 2509.24745: scores that heads share cannot tell how concentrated each head is.
    So a head keeps, in every row, as many of the best blocks as hold a share of the mean exact
    block mass of ``budget_rows`` rows. There they are the last block's; here one is drawn from each
    of as many stretches of the sequence. Under a density, one share serves a whole layer.

    Attributes:
        p: Share of the mass, in (0, 1]; a density replaces it.
        budget_rows: Query rows whose exact attention says how many blocks are kept, at least 1.
    """

    budget_rows: int = 128

    takes_ranks: ClassVar[bool] = True
    takes_clusters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        OfShare.__post_init__(self)
        check_sizes(self, "budget_rows")

    def refuses(self, policy: Policy) -> str | None:
        """It needs one of the two."""
        if self.p is None and policy.any_density is None:
            return "selector=sampled_p needs p, a share of the mass in (0, 1], or a density"
        return None

    def select(self, these: Selection) -> Lists:
        """Keep equally many blocks in all rows of a head, the best of each."""
        blocks = these.inputs.blocks
        mass = block_mass_of_rows(these.inputs, self.budget_rows)
        ranked = mass.sort(dim=-1, descending=True).values
        before = F.pad(ranked.cumsum(dim=-1)[..., :-1], (1, 0))  # the mass of all better blocks
        if these.density is not None:
            counts = _of_density(before, these.density, these.inputs)
        else:
            assert self.p is not None
            counts = (before < 1.0 - these.way * (1.0 - self.p)).sum(dim=-1)
        counts = counts.clamp(min=these.least)[..., None].expand(*mass.shape[:2], blocks.rows)
        scores = these.estimate.scores.expand(*mass.shape[:2], -1, -1)
        keys = counts * blocks.kv_block
        return select_row_budget(scores, blocks.kv_sizes, keys, always=these.always)


def _of_density(before: Tensor, density: float, inputs: Inputs) -> Tensor:
    """Blocks of each head, of one share of the mass for a layer, ``(batch, own heads)``."""
    every = all_of(inputs.share, before)
    number = max(1, min(round(density * every[0].numel()), every[0].numel()))
    share = every.flatten(1).kthvalue(number, dim=-1).values
    return own_of(inputs.share, (every <= share[:, None, None]).sum(dim=-1))


def block_mass_of_rows(inputs: Inputs, number: int) -> Tensor:
    """Mean exact attention of some rows to each block of keys, float32 ``(batch, heads, N)``.

    Args:
        inputs: Of equal blocks of keys.
        number: Query rows, one drawn from each of as many stretches of the sequence.
    """
    blocks, (q, k, _), rows = inputs.blocks, inputs.qkv, draw_rows(inputs, number)
    at_once = min(len(rows), ROWS)
    mass, _ = exact_mass(
        only_finite(q.index_select(2, rows)), k, q_block=at_once, kv_block=blocks.kv_block,
        scale=inputs.scale,
    )  # fmt: skip
    start = torch.arange(mass.shape[2], device=q.device) * at_once
    number_of = (len(rows) - start).clamp(max=at_once)
    return (mass * (number_of / len(rows))[:, None]).sum(dim=2)
