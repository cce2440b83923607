"""Compensation: what is done for the blocks that are skipped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan, Pooled, dense_plan
from vidsparse.kernels.planning.pooling import only_finite, pool_blocks
from vidsparse.kernels.planning.rescale import rescale
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.lists import lists_of_mask, plan_of_lists
from vidsparse.policies.part import Part
from vidsparse.policies.pooled import pooled_mass
from vidsparse.policies.work import Kernel, Level, Work

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


Deeper = Callable[[Sequence[float]], Iterator[Tensor]]
"""Block masks of plans that keep more and more, each by a share of the blocks, or of the mass where
that is what is kept; boolean ``(B|1, H|1, M, N)``."""


class Compensation(Part):
    """What is done for the blocks that are skipped.

    The defaults are those of one that does nothing.
    """

    __slots__ = ()

    compensates: ClassVar[bool] = True
    """Whether anything is done at all."""
    reuses_plans: ClassVar[bool] = True
    """Whether a plan serves another call."""
    keeps_plans: ClassVar[bool] = False
    """Whether it pays only where a plan serves several steps."""
    takes_clusters: ClassVar[bool] = False
    """Whether blocks may be of unequal size."""
    measured: ClassVar[bool] = False
    """Whether the error on sampled rows knows what it does."""
    through_means: ClassVar[bool] = False
    """Whether skipped blocks attend through their means."""
    keeps_over_steps: ClassVar[str | None] = None
    """What of one denoising step the next cannot do without, in the user's words."""

    def always(self, always: Tensor) -> Tensor:
        """What is kept whatever it scores, boolean, with what this one needs besides."""
        return always

    def extend(self, work: Work, way: float, deeper: Deeper) -> Work:
        """Add to a plan what skipped blocks take part through.

        Args:
            work: Ordered and planned.
            way: How far the schedule has come from dense, in (0, 1].
            deeper: Plans of this call that keep more.
        """
        return work

    def again(self, work: Work) -> Work:
        """Make anew what ``extend`` made of keys and values, for others in the same plan.

        Args:
            work: Extended once, with other tokens since, and without pooled means.
        """
        return work

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        """Run a plan and finish its output.

        Args:
            work: Ordered and planned.
            kernel: Runs block plans.
            way: As in ``extend``.
            replan: Steps until a layer's plan is made anew.

        Returns:
            The output, ``(batch, heads, seq, head_dim)`` in the plan's order, and the density of
            what was computed beside the plan and its levels.
        """
        return kernel(*work.inputs.qkv, work.plan), 0.0

    def pairs(
        self, ways: Sequence[float], densities: Sequence[float], *, replan: int, means: float
    ) -> list[float]:
        """What it computes at each step beside the plan, as a share of all pairs.

        Args:
            ways: How far from dense each step is, in [0, 1].
            densities: Of the plan of each step.
            replan: Steps until a plan is made anew.
            means: Blocks of keys over keys.
        """
        return [0.0] * len(ways)

    def check_memory(self, needed: int) -> None:
        """Raise BadInputError where a guidance branch would keep too many bytes in host memory."""

    def state_bytes(self, grid: TokenGrid, head_dim: int, itemsize: int) -> int:
        """Bytes a head remembers in host memory.

        Args:
            grid: The tokens.
            head_dim: Of a head.
            itemsize: Bytes of a number of the model's dtype.
        """
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCompensation(Compensation):
    """Skipped blocks get no attention."""

    compensates: ClassVar[bool] = False
    takes_clusters: ClassVar[bool] = True
    measured: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale(Compensation):
    """The output shrinks to its estimated share of the mass (Rectified SpaAttn).

    The mean values of skipped blocks are added where that gains more than it errs.
    """

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        """Rescale what the kernel made."""
        out = kernel(*work.inputs.qkv, work.plan)
        return rescaled(out, work.plan, work.inputs), 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Centroid(Compensation):
    """Skipped blocks attend through their mean key and value, scored with ``+ ln(size)``."""

    takes_clusters: ClassVar[bool] = True
    measured: ClassVar[bool] = True
    through_means: ClassVar[bool] = True

    def extend(self, work: Work, way: float, deeper: Deeper) -> Work:
        """Hand the kernel the means."""
        return self.again(work)

    def again(self, work: Work) -> Work:
        """The means of these keys and values."""
        return dataclasses.replace(work, plan=with_centroids(work.plan, work.inputs))

    def pairs(
        self, ways: Sequence[float], densities: Sequence[float], *, replan: int, means: float
    ) -> list[float]:
        """One pair for each block that is skipped."""
        return [(1 - density) * means for density in densities]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels(Compensation):
    """The next best blocks attend through means of 2, 4 and 8 tokens (PSA).

    Shares are of the key blocks; with the p of ``selector=ranked`` they are of each row's mass, as
    the estimator sees it: of the likeliest blocks those that hold p are read exactly, those after
    them that hold the first share through means, and so on.

    Attributes:
        level2: Share of the key blocks that are read as means of 2 tokens, in [0, 1].
        level4: The same, of 4 tokens.
        level8: The same, of 8 tokens.
        cap: Read a block through means of so many tokens only where the first and the last key of
            each are alike: of a mean cosine above .7, .65 and .6 for 2, 4 and 8 tokens. Others are
            read through smaller ones that are allowed, or exactly.
    """

    level2: float = 0.0
    level4: float = 0.0
    level8: float = 0.0
    cap: bool = False

    reuses_plans: ClassVar[bool] = False
    fixed: ClassVar[frozenset[str]] = frozenset({"block"})

    def __post_init__(self) -> None:
        for name in ("level2", "level4", "level8"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(f"{name} must be in [0, 1], got {getattr(self, name):g}")
        if not self.shares:
            raise BadInputError(
                "compensation=levels needs level2, level4 or level8, the share of the key blocks "
                "to read as means of so many tokens, in (0, 1]"
            )

    @property
    def shares(self) -> dict[int, float]:
        """Share of the key blocks by the tokens of a mean."""
        shares = {2: self.level2, 4: self.level4, 8: self.level8}
        return {tokens: share for tokens, share in shares.items() if share}

    def refuses(self, policy: Policy) -> str | None:
        """A mean of 8 tokens in a block of 16 means, and a ranking of every row."""
        if not policy.selector.equal_rows or policy.block != 128:
            return "compensation=levels takes selector=top_k and block=128, or selector=ranked"
        return None

    def always(self, always: Tensor) -> Tensor:
        """The last block of keys too: it may end in a short mean."""
        always = always.clone()
        always[..., -1] = True
        return always

    def extend(self, work: Work, way: float, deeper: Deeper) -> Work:
        """Add the blocks that come after those of the plan, by the tokens of their means."""
        plan, found = work.plan, {1: work.plan.to_block_mask()}
        seen = found[1]
        masks = deeper([way * share for share in self.shares.values()])
        for tokens, upto in zip(self.shares, masks, strict=True):
            found[tokens] = upto & ~seen
            seen = seen | upto
        if self.cap:
            found = capped(found, most_alike(work.inputs))
            plan = plan_of_lists(lists_of_mask(found[1]), work.inputs.blocks)
        levels = tuple(
            Level(tokens, coarse_plan(keep, plan, tokens))
            for tokens, keep in found.items()
            if tokens > 1
        )
        return dataclasses.replace(work, plan=plan, levels=levels)

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        """Merge the plan and its levels."""
        attend = partial(kernel, return_lse=True)
        return with_levels(work.inputs, work.plan, work.levels, attend), 0.0

    def pairs(
        self, ways: Sequence[float], densities: Sequence[float], *, replan: int, means: float
    ) -> list[float]:
        """A pair for each mean."""
        besides = sum(share / tokens for tokens, share in self.shares.items())
        return [way * besides for way in ways]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual(Compensation):
    """What skipped blocks gave each token when the plan was made stands in for them.

    Re-ttention, arXiv 2505.22918: at a dense step it measures the share of the mass that each row's
    kept blocks have, exp(LSE of the plan - LSE of all), and the residual, the dense output less the
    sparse one scaled by that share. Later steps add the residual to the sparse output scaled by the
    share, which the paper raises by 0.04 a step and never lowers the residual for: the weights then
    sum to more than one. Unless ``fades`` says otherwise the residual falls here as the share
    rises, so that they sum to one; a share of one leaves none of it.

    From full sparsity on: a plan that changes from step to step lacks something else every time.

    Attributes:
        fades: Whether the residual falls as the share rises.
        most_gigabytes: Of host memory that the residuals of a guidance branch may take; where they
            would take more the run is refused.
    """

    fades: bool = True
    most_gigabytes: float = 24.0

    keeps_plans: ClassVar[bool] = True
    keeps_over_steps: ClassVar[str | None] = "a residual"

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        """Correct the output, or measure by dense attention: the residual is of one plan.

        It is measured when a plan is made, and used while that is kept.
        """
        inputs, plan, step = work.inputs, work.plan, work.inputs.step
        if way < 1.0:
            return kernel(*inputs.qkv, plan), 0.0
        age, oldest = inputs.state.age(RESIDUE, step), inputs.plan_age
        oldest = replan - 1 if oldest is None else oldest  # a static plan has no age
        if age is not None and 0 <= age <= oldest:
            return with_residual(kernel(*inputs.qkv, plan), inputs, fades=self.fades), 0.0
        sparse, dense = (
            kernel(*inputs.qkv, each, return_lse=True) for each in (plan, dense_plan(plan))
        )
        refresh_residual(inputs, sparse, dense)
        return dense[0], 1.0

    def pairs(
        self, ways: Sequence[float], densities: Sequence[float], *, replan: int, means: float
    ) -> list[float]:
        """A dense step for each new plan."""
        full = [step for step, way in enumerate(ways) if way >= 1]
        return [float(step in full[::replan]) for step in range(len(ways))]

    def check_memory(self, needed: int) -> None:
        """Refuse what does not fit.

        Raises:
            BadInputError: With the number of gigabytes.
        """
        if needed > self.most_gigabytes * 1e9:
            raise BadInputError(
                f"compensation=residual would keep {needed / 1e9:.1f} GB in host memory for each "
                f"guidance branch, and most_gigabytes is {self.most_gigabytes:g}: make a smaller "
                f"video, or allow it with most_gigabytes={math.ceil(needed / 1e9)} where the "
                "machine has them"
            )

    def state_bytes(self, grid: TokenGrid, head_dim: int, itemsize: int) -> int:
        """A residual and a share of every token."""
        return grid.tokens * (head_dim + 1) * itemsize


def with_centroids(plan: BlockPlan, inputs: Inputs) -> BlockPlan:
    """A plan whose skipped blocks attend through their means."""
    pooled = Pooled(key=inputs.k_means, value=inputs.v_means, size=inputs.blocks.kv_sizes)
    return dataclasses.replace(plan, pooled=pooled)


def rescaled(out: Tensor, plan: BlockPlan, inputs: Inputs) -> Tensor:
    """The output at its share of the mass, and the mean values of blocks that are worth it."""
    mass = pooled_mass(inputs).softmax(dim=-1).nan_to_num(0.0)
    return rescale(out, plan, mass, inputs.v_means, worth_it(inputs))


def worth_it(inputs: Inputs) -> Tensor:
    """Where the gain of a mean exceeds its error, boolean ``(batch, heads, M, N)``.

        |q_i . k_j| > spread(q_i) |k_j| + |q_i| spread(k_j)

    with the means q_i and k_j of blocks, and spread the mean distance of a block's tokens from it.
    """
    query, key = inputs.q_means, inputs.k_means
    q, k, _ = inputs.qkv
    q_spread = _spread(only_finite(q), query, inputs.blocks.block)
    k_spread = _spread(k, key, inputs.blocks.block)
    error = q_spread[..., None] * key.norm(dim=-1).unsqueeze(-2)
    error = error + query.norm(dim=-1)[..., None] * k_spread.unsqueeze(-2)
    return (query @ key.mT).abs() > error


def _spread(x: Tensor, means: Tensor, block: int) -> Tensor:
    """Mean distance of each block's tokens from their mean, ``(batch, heads, N)``."""
    near = means.repeat_interleave(block, dim=2)[:, :, : x.shape[2]]
    distance = (x.float() - near).norm(dim=-1, keepdim=True)
    return pool_blocks(distance, block, impl="reference")[..., 0]


Attend = Callable[[Tensor, Tensor, Tensor, BlockPlan], tuple[Tensor, Tensor]]


def coarse_plan(keep: Tensor, plan: BlockPlan, tokens: int) -> BlockPlan:
    """The plan over means of ``tokens`` keys that reads these blocks; rows may be empty.

    Args:
        keep: Boolean ``(B|1, H|1, M, N)``.
        plan: Over the keys themselves, of equal blocks.
        tokens: In a mean; divides the block into at least 16 means.
    """
    return BlockPlan.from_mask(
        keep,
        q_len=plan.q_len,
        kv_len=-(-plan.kv_len // tokens),
        q_block=plan.q_block,
        kv_block=plan.kv_block // tokens,
    )


ALIKE = {2: 0.7, 4: 0.65, 8: 0.6}  # mean cosine of keys that may be read as one, by PSA's code


def most_alike(inputs: Inputs) -> Tensor:
    """How many tokens a mean of each key block may hold, 1, 2, 4 or 8, int64 ``(B, H, N)``.

    Each number is judged by itself, by the first and the last key of every run of so many.
    """
    key = torch.nn.functional.normalize(inputs.qkv[1].float(), dim=-1)
    block, number = inputs.blocks.block, inputs.blocks.columns
    allowed = torch.ones(*key.shape[:2], number, dtype=torch.int64, device=key.device)
    for tokens, least in ALIKE.items():
        first, last = key[:, :, ::tokens], key[:, :, tokens - 1 :: tokens]
        cosine = (first[:, :, : last.shape[2]] * last).sum(dim=-1, keepdim=True)
        mean = pool_blocks(cosine, block // tokens, impl="reference")[..., 0]
        allowed[..., : mean.shape[2]].masked_fill_(mean > least, tokens)
    return allowed


def capped(found: dict[int, Tensor], most: Tensor) -> dict[int, Tensor]:
    """Blocks by the tokens of their means, none with more than its keys allow.

    Args:
        found: Boolean ``(B|1, H|1, M, N)`` by the tokens of a mean.
        most: Of ``most_alike``.
    """
    made = {tokens: torch.zeros_like(found[1]) for tokens in (1, *ALIKE)}
    for tokens, keep in found.items():
        for fewer in made:
            own = (most >= tokens) if fewer == tokens else (most == fewer) & (most < tokens)
            made[fewer] = made[fewer] | (keep & own.unsqueeze(-2))
    return made


def with_levels(
    inputs: Inputs, plan: BlockPlan, levels: tuple[Level, ...], attend: Attend
) -> Tensor:
    """Attention over exact keys and over means, merged by log-sum-exp.

    A mean of n keys stands for n of them, so its scores count ``ln n`` more. What a short last mean
    stands for is not known to the kernel: its block must be exact.
    """
    q, k, v = inputs.qkv
    parts = [attend(q, k, v, plan)]
    for tokens, coarse in levels:
        key, value = (pool_blocks(x, tokens, dtype=x.dtype) for x in (k, v))
        out, lse = attend(q, key, value, coarse)
        parts.append((out, lse + math.log(tokens)))
    weight = torch.stack([lse for _, lse in parts]).softmax(dim=0)
    outs = torch.stack([out for out, _ in parts])
    return (outs * weight[..., None]).sum(dim=0).to(q.dtype)


RATIO, RESIDUE = "ratio of denominators", "residual"
RISE = 0.04  # of the ratio at every step after it was measured


def refresh_residual(
    inputs: Inputs, sparse: tuple[Tensor, Tensor], dense: tuple[Tensor, Tensor]
) -> None:
    """Remember what the sparse output of every token lacks, in host memory.

    One mean for a block of tokens would take a 64th of the memory, and makes a result that is worse
    than without any residual.

    Args:
        inputs: In the plan's order.
        sparse: Output ``(batch, heads, seq, head_dim)`` and log-sum-exp ``(batch, heads, seq)`` of
            the plan.
        dense: Those of dense attention.
    """
    ratio = (sparse[1] - dense[1]).exp().clamp(max=1.0)[..., None].to(dense[0].dtype)
    inputs.state.park(RATIO, ratio, inputs.step)
    residue = torch.addcmul(dense[0], sparse[0], ratio, value=-1)
    inputs.state.park(RESIDUE, residue, inputs.step)


def with_residual(out: Tensor, inputs: Inputs, *, fades: bool = True) -> Tensor:
    """The output scaled by the remembered ratio, which rises to one, plus what is left of the rest.

    The residual is of one less the ratio that was measured, and falls with one less that of now,
    or, as published, stays.
    """
    ratio, residue = inputs.state.get(RATIO), inputs.state.get(RESIDUE)
    assert ratio is not None
    assert residue is not None
    age = inputs.state.age(RATIO, inputs.step) or 0
    skipped = 1.0 - ratio.float()
    now = (skipped - RISE * age).clamp(min=0.0)
    left = torch.where(skipped > 0, now / skipped, 0.0).to(out.dtype) if fades else 1.0
    return torch.addcmul(residue * left, out, (1.0 - now).to(out.dtype))
