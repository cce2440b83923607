"""What an estimator is: how much each block of keys matters to each block of queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from vidsparse.grid import TokenGrid
from vidsparse.head_sharing import HeadShare
from vidsparse.kernels.engines.observe import Observed
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.pooling import only_finite, pool_blocks, pool_ragged
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.part import Part
from vidsparse.purse import Purse
from vidsparse.state import LayerState

if TYPE_CHECKING:
    from vidsparse.policies.work import Kernel, Work

PLAN = "plan"  # the name that a plan is remembered under


class Measure(Enum):
    """What a score means, and so how scores of two rows compare.

    Attributes:
        RANK: Nothing but an order within a head's map.
        LOG_MASS: Log of attention mass, of any scale in each row.
        COST: Error of the output if this block alone is skipped, of blocks of unequal size over the
            root of their size; comparable in all of a layer.
    """

    RANK = auto()
    LOG_MASS = auto()
    COST = auto()


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """What a policy may look at in one attention call.

    Attributes:
        blocks: The sequence, in its order, cut into blocks.
        q: ``(batch, heads, seq, head_dim)`` in that order; None when only the geometry is asked
            for, as k and v.
        k: ``(batch, heads, seq, head_dim)``, likewise.
        v: ``(batch, heads, seq, head_dim)``, likewise.
        scale: Score scale of the attention call.
        heads: Number of heads.
        share: Which of the layer's heads those are, where devices share them; None if all.
        layer: Index of the layer, from 0.
        expert: Which transformer of the pipeline.
        step: Denoising step, from 0.
        done: Share of the run that is done before the step, in [0, 1].
        density: Share of the pairs to keep at full sparsity, in (0, 1]; None leaves it to the
            selector or to the estimator's own mask.
        purse: What the run may spend, where a tolerance is moved by that; else None.
        state: What this layer, branch and geometry remember from earlier steps.
        shared: What all guidance branches of this layer and geometry remember together; None if
            each keeps to itself.
        remember: Whether another call will want the order and the plan of this one again.
        way: How far the schedule has come from dense, in (0, 1].
        kept: How many tokens come first that attend for all, text before the video among them;
            None where no order says so.
        copies: Whose output each place takes in the end, int64 ``(batch, heads, seq)``, -1 for what
            is no number; None where each keeps its own.
        eight_bits: Whether what is planned will be computed in eight bits.
    """

    blocks: Blocks
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    scale: float = 1.0
    heads: int = 1
    share: HeadShare | None = None
    layer: int = 0
    expert: str = "transformer"
    step: int = 0
    done: float = 0.0
    density: float | None = None
    purse: Purse | None = None
    state: LayerState = field(default_factory=LayerState)
    shared: LayerState | None = None
    remember: bool = False
    way: float = 1.0
    kept: int | None = None
    copies: Tensor | None = None
    eight_bits: bool = False

    @property
    def all_heads(self) -> int:
        """Number of heads of the layer, on all devices."""
        return self.heads if self.share is None else self.share.number

    @property
    def common(self) -> LayerState:
        """Where orders, choices and plans are remembered."""
        return self.state if self.shared is None else self.shared

    @property
    def plan_age(self) -> int | None:
        """How many steps ago the plan that is remembered was made; None if there is none."""
        return self.common.age(PLAN, self.step)

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, which are there."""
        return _there(self.q), _there(self.k), _there(self.v)

    @cached_property
    def told(self) -> dict[str, Any]:
        """What the parts of this call have found for one another; a changed copy knows nothing."""
        return {}

    def knowing_means(self, *, q: Tensor | None, k: Tensor | None) -> Inputs:
        """The same inputs, told their ``q_means`` and ``k_means``; a changed copy is not.

        Args:
            q: Of queries; None leaves them to be made.
            k: Of keys, likewise.
        """
        known = {"q_means": q, "k_means": k}
        self.__dict__.update({name: x for name, x in known.items() if x is not None})
        return self

    @cached_property
    def q_means(self) -> Tensor:
        """Mean query of each block, float32 ``(batch, heads, M, head_dim)``.

        Queries that are no number or infinite change no other: the kernel alone gets them.
        """
        return _means(_there(self.q), self.blocks.block, self.blocks.q_offsets, finite=True)

    def tokens(self, at: slice) -> Tensor:
        """Similarity of queries to the mean key of each block, ``(batch, heads, tokens, N)``.

        Args:
            at: Which tokens.
        """
        return only_finite(_there(self.q)[:, :, at]).float() @ self.k_means.mT

    @cached_property
    def k_means(self) -> Tensor:
        """Mean key of each block, float32 ``(batch, heads, N, head_dim)``."""
        return _means(_there(self.k), self.blocks.kv_block, self.blocks.kv_offsets)

    @cached_property
    def v_means(self) -> Tensor:
        """Mean value of each block, float32 ``(batch, heads, N, head_dim)``."""
        return _means(_there(self.v), self.blocks.kv_block, self.blocks.kv_offsets)


def _there(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _means(x: Tensor, block: int, offsets: Tensor | None, *, finite: bool = False) -> Tensor:
    if offsets is None:
        return pool_blocks(x, block, finite=finite)
    return pool_ragged(x, offsets, finite=finite)


@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate:
    """How much each block matters.

    Attributes:
        scores: ``(B|1, H|1, M, N)``; of two blocks, the one with the higher score is kept.
        threshold: The estimator's own cut-off: blocks that score at least this belong to its
            mask. None when it only ranks blocks, and a density must say how many are kept.
        log_mass: From which ``top_p`` counts how many blocks each row keeps, if not the scores.
        scales: Whether the mask is so many times larger where the threshold is, as it then is on
            the way to full sparsity.
        spent: Whether the order has spent the density: then the mask is what it pays for.
        besides: What is kept beside all that the selector keeps, and beside its density, boolean,
            broadcastable to the scores.
        make_exact: Makes the plan of exactly the pairs of its rule, where its mask is exact to the
            token.
    """

    scores: Tensor
    threshold: float | None = None
    log_mass: Tensor | None = None
    scales: bool = False
    spent: bool = False
    besides: Tensor | None = None
    make_exact: Callable[[], BlockPlan] | None = None

    @cached_property
    def exact(self) -> BlockPlan | None:
        """The plan of exactly the pairs of its rule, in place of the blocks of its mask."""
        return None if self.make_exact is None else self.make_exact()


class Estimator(Part, ABC):
    """Scores blocks. A frozen dataclass of its parameters; what it remembers is in the inputs."""

    __slots__ = ()

    needs_data: ClassVar[bool] = True
    """Whether it looks at q, k or v; if not, its scores are made once for each geometry."""
    per_layer: ClassVar[bool] = False
    """Whether its scores differ between layers that see the same q and k."""
    has_mask: ClassVar[bool] = False
    """Whether its estimate has a threshold, so that it needs no density."""
    takes_clusters: ClassVar[bool] = False
    """Whether it scores blocks of unequal size."""
    of_pruned: ClassVar[bool] = False
    """Whether it scores pairs of tokens that attend for all."""
    scores_tokens: ClassVar[bool] = False
    """Whether ``Inputs.tokens``, each query against mean keys, is what it goes by."""
    observes: ClassVar[bool] = False
    """Whether it learns from what the kernel saw: it then runs plans, and has an ``observe``."""
    keeps_over_steps: ClassVar[str | None] = None
    """What of one denoising step the next cannot do without, in the user's words."""
    measure: ClassVar[Measure]
    """What its scores mean."""

    @property
    def kept(self) -> float | None:
        """Share of the pairs that it keeps whatever it sees, where a file says so."""
        return None

    @property
    def exact(self) -> bool:
        """Whether its mask is exact to the token."""
        return False

    @abstractmethod
    def estimate(self, inputs: Inputs) -> Estimate: ...

    def token_density(self, grid: TokenGrid, block: int) -> float | None:
        """Pairs of its own mask over all pairs, before tokens are rounded to blocks, if known."""
        return None

    def besides(self, grid: TokenGrid) -> float:
        """Share of all pairs that its estimate keeps beside the density."""
        return 0.0

    def state_bytes(self, blocks: int) -> int:
        """Bytes a head remembers on the device, of so many blocks in a row."""
        return 0

    def parked_bytes(self, grid: TokenGrid) -> int:
        """Bytes a head remembers in host memory, for all guidance branches."""
        return 0

    def visits(self, plan: BlockPlan, step: int = 0) -> BlockPlan:
        """The plan with its lists in the order in which blocks are to be seen at a step."""
        return plan

    def observe(self, inputs: Inputs, plan: BlockPlan, seen: Observed, way: float) -> None:
        """Remember what the kernel saw.

        Args:
            inputs: Of the call.
            plan: As the blocks were visited.
            seen: What the kernel reported of each.
            way: How far the schedule has come from dense, in (0, 1].
        """
        raise NotImplementedError

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        """Run a plan and remember what was seen, in the place of ``Compensation.attend``."""
        visits = self.visits(work.plan, work.inputs.step)
        seen = kernel(*work.inputs.qkv, visits, observe=True)
        self.observe(work.inputs, visits, seen, way)
        return seen.out, 0.0
