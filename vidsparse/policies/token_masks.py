"""Rules of geometry, exact to the token: the kernel masks the blocks that a rule cuts through."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.partial import plan_of_pairs
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Estimator
from vidsparse.policies.orders import coordinates

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


class Masks(StrEnum):
    """What a mask that needs no data is made of.

    Attributes:
        BLOCK: Of whole blocks: one is computed if enough of its pairs are in the rule.
        TOKEN: Of exactly the pairs of the rule; blocks that it cuts through are computed, and then
            masked, so they cost as much as whole ones.
    """

    BLOCK = "block"
    TOKEN = "token"


class Rule(NamedTuple):
    """Which tokens of video see one another; text sees all and is seen by all.

    All that counts of two tokens is what tables of their frames, rows and columns say.

    Attributes:
        axes: Which places along frames, rows and columns can see which, boolean ``(length,
            length)`` each, or None where an axis does not matter.
        numbers: Whole numbers of each two places, int32 ``(length, length)``, or None.
        rest: Whether tokens see one another, given the numbers that there are. None where it is
            enough that they can along every axis.
    """

    axes: tuple[Tensor | None, ...]
    numbers: tuple[Tensor | None, ...] = (None, None, None)
    rest: Callable[..., Tensor] | None = None

    def sees(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether q sees k, tokens by frame, row and column, ``(..., 3)``, -1 of text."""
        tables = enumerate(self.axes if self.rest is None else self.numbers)
        said = [of[q[..., axis], k[..., axis]] for axis, of in tables if of is not None]
        inside = reduce(Tensor.logical_and_, said) if self.rest is None else self.rest(*said)
        return inside.logical_or_((q[..., 0] < 0) | (k[..., 0] < 0))

    def to(self, device: torch.device) -> Rule:
        """The same on a device."""

        def moved(tables: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(None if table is None else table.to(device) for table in tables)

        return Rule(moved(self.axes), moved(self.numbers), self.rest)

    def density(self, grid: TokenGrid) -> float | None:
        """Pairs that see one another over all pairs; None where axes alone do not say it."""
        if self.rest is not None:
            return None
        share = 1.0
        for table in self.axes:
            share *= 1.0 if table is None else float(table.float().mean())
        video = grid.video_tokens**2
        return (share * video + grid.tokens**2 - video) / grid.tokens**2


def exact_plan(rule: Rule, blocks: Blocks) -> BlockPlan:
    """The plan of exactly the pairs of a rule, over equal blocks in an order that heads share.

    Where ``blocks.only`` is set, other rows are empty.
    """
    grid, device = blocks.grid, blocks.device
    text = [torch.full((n, 3), -1) for n in (grid.prefix, grid.suffix)]
    token = torch.cat([text[0], coordinates(grid), text[1]])
    if blocks.order is not None:
        token = token[blocks.order[0, 0].long().cpu()]
    kinds = _kinds(token, rule.to(token.device), blocks).to(device)
    token, rule = token.to(device), rule.to(device)
    candidates, whole = _by_axes(token, rule, blocks)
    if blocks.only is not None:
        asked = torch.zeros(blocks.number, 1, dtype=torch.bool, device=device)
        asked[blocks.only] = True
        candidates, whole = candidates & asked, whole & asked
    return plan_of_pairs(
        lambda q, k: rule.sees(token[q], token[k]),
        q_len=grid.tokens,
        kv_len=grid.tokens,
        q_block=blocks.block,
        kv_block=blocks.block,
        candidates=candidates,
        whole=whole,
        kinds=kinds,
    )


def _kinds(token: Tensor, rule: Rule, blocks: Blocks) -> Tensor:
    """A number of each block that is the same where its pairs are, int64 ``(M, N)``, on the CPU.

    A sum over the pairs of what the tables say, with random odd weights, modulo 2 ** 64: other
    pairs have the same number about once in 2 ** 60.
    """
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(-(2**62), 2**62, (2, blocks.block), generator=draw) * 2 + 1
    of_axis = (torch.randint(-(2**62), 2**62, (3,), generator=draw) * 2 + 1).tolist()
    at = torch.arange(len(token))
    total = torch.zeros(blocks.number, blocks.number, dtype=torch.int64)
    for axis, (table, numbers) in enumerate(zip(rule.axes, rule.numbers, strict=True)):
        said = 0 if table is None else table.long()
        said = said + (0 if numbers is None else 2 * numbers.long())
        if isinstance(said, int):
            continue
        said = torch.nn.functional.pad(said, (0, 1, 0, 1), value=-(10**9))  # of text, the last
        rows, columns = (
            torch.zeros(blocks.number, len(said), dtype=torch.int64).index_put_(
                (at // blocks.block, token[:, axis]), of[at % blocks.block], accumulate=True
            )
            for of in weight
        )
        total += rows @ said @ columns.mT * of_axis[axis]
    return total


def _by_axes(token: Tensor, rule: Rule, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Blocks that may hold a pair by each axis alone, and that surely hold all, ``(M, N)``."""
    block = torch.arange(len(token), device=token.device) // blocks.block
    is_text, one = token[:, 0] < 0, torch.ones(len(token), device=token.device)
    text = torch.zeros(blocks.number, device=token.device).index_add_(0, block, is_text * one)
    may = torch.ones(blocks.number, blocks.number, dtype=torch.bool, device=token.device)
    whole = may if rule.rest is None else ~may
    for axis, table in enumerate(rule.axes):
        if table is not None:
            holds = torch.zeros(blocks.number, len(table), device=token.device)
            holds.index_put_((block, token[:, axis]), (~is_text).float(), accumulate=True)
            seen = holds @ table.float() @ holds.mT  # whole numbers up to 256 * 256
            may = may & (seen > 0)
            whole = whole & (seen == blocks.sizes[:, None] * blocks.sizes)
    some, only = text > 0, text == blocks.sizes
    return may | some | some[:, None], whole | only | only[:, None]


class Geometric(Estimator):
    """An estimator whose mask is a rule of the geometry, which may be exact to the token."""

    __slots__ = ()

    masks: Masks

    @abstractmethod
    def rule(self, blocks: Blocks) -> Rule:
        """Which tokens see one another."""

    @property
    def exact(self) -> bool:
        """Whether its mask is exact to the token."""
        return self.masks is Masks.TOKEN

    def make_exact(self, blocks: Blocks) -> Callable[[], BlockPlan] | None:
        """What makes the plan of its rule, if its mask is exact."""
        return partial(exact_plan, self.rule(blocks), blocks) if self.exact else None

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density chooses whole blocks; without one, exact masks round nothing."""
        if not self.exact:
            return {}
        if density is not None:
            return {"masks": "a density chooses whole blocks, so give one of the two"}
        return {"overlap": "with masks=token no block is rounded"}


def is_exact(policy: Policy) -> bool:
    """Whether a policy computes exactly the pairs of a rule, once it is at full sparsity."""
    return policy.estimator.exact and policy.any_density is None


def why_not_exact(policy: Policy) -> str | None:
    """Why masks of a policy have to be of whole blocks, in one sentence; None if they have not."""
    clashes = {
        "heads choose among masks of whole blocks": policy.alternatives is not None,
        "the order follows the data": not policy.order.static,
        f"rotate={policy.rotate:g} opens whole blocks": policy.rotate > 0,
        "its selector takes no mask": not policy.selector.takes_masks,
        "the compensation is of whole blocks": policy.compensation.compensates,
    }
    problem = next((problem for problem, holds in clashes.items() if holds), None)
    return None if problem is None else f"masks=token does not fit: {problem}; give masks=block"
