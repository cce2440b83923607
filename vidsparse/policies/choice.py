"""Each head takes, of several orders and estimators, the one that errs least on sampled rows.

SVG (arXiv 2502.01776) chooses so between two orders at every step. Other rules, those of
PAROAttention, Sparse-vDiT and RainFusion, are in ``choosing.py``; what was found offline may come
from a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsparse.calibrated import Calibrated
from vidsparse.errors import BadInputError
from vidsparse.head_sharing import all_of, own_of
from vidsparse.policies.choosing import ChooseBy, by_blockiness, by_loss, by_recall
from vidsparse.policies.estimator import Estimate, Estimator, Inputs
from vidsparse.policies.orders import Arranged, Order, in_order
from vidsparse.policies.pruned_heads import copied_error, mixed
from vidsparse.policies.sampled import Candidate, Samples

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

CHOICE = "choice"
COMPARED_AT = 0.25  # density at which candidates compete where the policy has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another order and estimator that a head may take.

    Attributes:
        order: Where tokens are put.
        estimator: Scores the blocks.
        density: Share of the pairs that it keeps, whatever that of the policy, in (0, 1]; of an
            order that prunes, where the policy has none.
        silent: Whether the output of a head that takes it is zero for all tokens of video.
    """

    order: Order
    estimator: Estimator
    density: float | None = None
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What heads may take in place of the policy's own order and estimator, and when they choose.

    Attributes:
        candidates: The other orders and estimators; each head takes what errs least.
        choose_every: Steps until heads choose anew; 0 chooses once in a generation.
        sampled_rows: Query rows that the error is measured on.
        choose_by: The rule.
        recall: Share of the mass that is enough, in (0, 1].
        cost_weight: What a density of one costs, in squared error relative to the outputs.
        most_loss: Error and cost together, above which a head stays dense.
        choices: A calibration file with a name for each layer or head, in parts of the run; heads
            of layers that it does not name choose for themselves.
        names: Of the policy's own order and estimator, and of the candidates, for such a file.
    """

    candidates: tuple[Alternative, ...]
    choose_every: int = 1
    sampled_rows: int = 64
    choose_by: ChooseBy = ChooseBy.ERROR
    recall: float = 0.9
    cost_weight: float = 0.5
    most_loss: float = 1.0
    choices: Calibrated | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.choose_every < 0:
            raise BadInputError(f"choose_every must be at least 0, got {self.choose_every}")
        check_sampled_rows(self.sampled_rows)
        if not 0 < self.recall <= 1:
            raise BadInputError(f"recall must be in (0, 1], got {self.recall:g}")
        for name in ("cost_weight", "most_loss"):
            if not getattr(self, name) >= 0:
                raise BadInputError(f"{name} must be at least 0, got {getattr(self, name):g}")
        if self.choices is not None:
            self.choices.check("choices", self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name of each candidate, the policy's own first; their numbers where none is given."""
        return self.names or tuple(str(at) for at in range(len(self.candidates) + 1))

    def idle(self) -> Mapping[str, str]:
        """What the rule does not look at."""
        found: dict[str, str] = {}
        said = f"heads choose by {self.choose_by}"
        if self.choose_by is not ChooseBy.RECALL:
            found["recall"] = said
        if self.choose_by is not ChooseBy.LOSS:
            found |= {"cost_weight": said, "most_loss": said}
        if self.choose_by is ChooseBy.BLOCKINESS:
            found["sampled_rows"] = said
        return found

    def named(self, inputs: Inputs) -> Tensor | None:
        """What the file chooses for the heads here, int8 ``(batch, heads)``, if it does."""
        if self.choices is None:
            return None
        found = self.choices.of(inputs.expert, inputs.layer, inputs.done, inputs.all_heads)
        if found is None:
            return None
        chosen = torch.tensor([[self.labels.index(str(name)) for name in found]], dtype=torch.int8)
        chosen = own_of(inputs.share, chosen.to(inputs.blocks.device))
        return chosen.expand(inputs.qkv[0].shape[0], -1)

    def due(self, age: int | None) -> bool:
        """Whether to choose anew, so many steps after the last time."""
        return bool(self.choose_every) and age is not None and not 0 <= age < self.choose_every


def check_sampled_rows(number: int) -> None:
    """Raise BadInputError where an error cannot be measured on so many rows."""
    if number < 1:
        raise BadInputError(f"sampled_rows must be at least 1, got {number}")


StaticEstimate = Callable[[Alternative, Inputs], Estimate]


def choose(
    policy: Policy,
    inputs: Inputs,
    density: float | Tensor | None,
    way: float,
    static: StaticEstimate,
) -> tuple[Arranged, Tensor]:
    """Choose for each head.

    Args:
        policy: With alternatives.
        inputs: In raster order.
        density: Of the mask that is made; the choice itself is made at the policy's own.
        way: How far the schedule has come from dense, in (0, 1].
        static: Remembers estimates that need no data.

    Returns:
        The call, each head in its own order, and what it keeps there, boolean
        ``(batch, heads, M, N)``.
    """
    choice = choice_of(policy, inputs, compared_at(policy, inputs.density), static)
    candidates = policy.candidates
    if alike(candidates):
        arranged = per_head(inputs, candidates, choice)
        return arranged, _mask(policy, candidates[0], arranged.inputs, density, way, static)
    orders = [_arranged(each, inputs) for each in candidates]
    masks = [
        _mask(policy, each, order.inputs, density, way, static)
        for each, order in zip(candidates, orders, strict=True)
    ]
    prunes = any(each.order.prunes for each in candidates)
    arranged = mixed(inputs, orders, choice) if prunes else per_head(inputs, candidates, choice)
    every = torch.stack([mask.expand(*choice.shape, -1, -1) for mask in masks])
    index = choice.long()[None, :, :, None, None].expand(1, *every.shape[1:])
    return arranged, every.gather(0, index)[0]


def compared_at(policy: Policy, density: float | None) -> float | None:
    """The density at which candidates compete; None for masks of their own.

    Args:
        policy: With alternatives.
        density: Of the policy at full sparsity, if it has one.
    """
    rule = policy.alternatives
    if density is None and rule is not None and rule.choose_by is not ChooseBy.LOSS:
        return COMPARED_AT
    return density


def choice_of(
    policy: Policy,
    inputs: Inputs,
    density: float | None,
    static: StaticEstimate,
    samples: Samples | None = None,
) -> Tensor:
    """The candidate of each head, int8 ``(batch, heads)``; made anew when it is due.

    Args:
        policy: With alternatives.
        inputs: In raster order.
        density: At which candidates are compared; None where they have masks of their own.
        static: Remembers estimates that need no data.
        samples: To compare them on; drawn if None.
    """
    alternatives = policy.alternatives
    assert alternatives is not None
    choice, named = inputs.common.get(CHOICE), alternatives.named(inputs)
    made = inputs.common.age(CHOICE, inputs.step)
    if named is None and choice is not None and not alternatives.due(made):
        return choice
    choice = named
    if choice is None:
        choice = losses(policy, inputs, density, static, samples).argmin(dim=0).to(torch.int8)
    inputs.common.put(CHOICE, choice, inputs.step)
    return choice


def losses(
    policy: Policy,
    inputs: Inputs,
    density: float | None,
    static: StaticEstimate,
    samples: Samples | None = None,
) -> Tensor:
    """What each candidate loses by the rule, ``(candidates, batch, heads)``.

    Args:
        policy: As in ``choice_of``; so are the others.
        inputs: In raster order.
        density: At which candidates are compared.
        static: Remembers estimates that need no data.
        samples: To compare them on.
    """
    rule, candidates = policy.alternatives, policy.candidates
    assert rule is not None
    orders = [_arranged(candidate, inputs) for candidate in candidates]
    if rule.choose_by is ChooseBy.BLOCKINESS:
        return by_blockiness(inputs, [arranged.inputs for arranged in orders])

    def mask(at: int) -> Tensor:
        return _mask(policy, candidates[at], orders[at].inputs, density, 1.0, static)

    def under(at: int, rows: Samples) -> Candidate:
        return rows.under(orders[at], centroids=False)

    number = len(candidates)
    if rule.choose_by is ChooseBy.RECALL:
        return by_recall(inputs, rule, number, mask, under)
    rows = Samples.draw(inputs, rule.sampled_rows) if samples is None else samples
    masks = [mask(at) for at in range(number)]
    errors = torch.stack(
        [
            copied_error(orders[at], rows)
            if candidates[at].order.prunes
            else under(at, rows).error(masks[at])
            for at in range(number)
        ]
    )
    if rule.choose_by is ChooseBy.ERROR:
        return errors
    size = rows.out.square().sum(dim=-1).mean(dim=-1)
    silent = torch.tensor([each.silent for each in candidates])
    silent = silent.to(errors.device, non_blocking=True)
    errors = torch.where(silent[:, None, None], size, errors)
    kept = [
        0.0 if each.silent else _cost(each, density) or masks[at].float().mean()
        for at, each in enumerate(candidates)
    ]
    of_layer = all_of(inputs.share, size).mean(dim=1, keepdim=True)
    return by_loss(errors, of_layer, kept, rule)


def _cost(candidate: Alternative, density: float | None) -> float | None:
    """What a candidate computes; None where a mask of its own says it."""
    if candidate.order.prunes:
        return density or candidate.density
    return candidate.density or density


def alike(candidates: tuple[Alternative, ...]) -> bool:
    """Whether heads differ in nothing but their order."""
    return len({(each.estimator, each.density) for each in candidates}) == 1


def silent_heads(candidates: tuple[Alternative, ...], choice: Tensor | None) -> Tensor | None:
    """Heads whose output is zero, boolean ``(batch, heads)``; None where none can be."""
    silent = [each.silent for each in candidates]
    if choice is None or not any(silent):
        return None
    return torch.tensor(silent).to(choice.device, non_blocking=True)[choice.long()]


def per_head(
    inputs: Inputs, candidates: tuple[Alternative, ...], choice: Tensor, *, again: bool = False
) -> Arranged:
    """Every head in the order it chose.

    Args:
        inputs: In raster order.
        candidates: What there is to choose.
        choice: Of each head, ``(batch, heads)``.
        again: Whether an order that prunes is that of the latest call.
    """
    if any(each.order.prunes for each in candidates):
        return mixed(inputs, [_arranged(each, inputs, again) for each in candidates], choice)
    orders = [_positions(candidate.order, inputs) for candidate in candidates]
    if all(order is None for order in orders):
        return Arranged(inputs)
    raster = torch.arange(inputs.blocks.grid.tokens, device=choice.device, dtype=torch.int32)
    stacked = torch.stack([raster if order is None else order[0, 0] for order in orders])
    return in_order(inputs, stacked[choice.long()])


def _mask(
    policy: Policy,
    candidate: Alternative,
    inputs: Inputs,
    density: float | Tensor | None,
    way: float,
    static: StaticEstimate,
) -> Tensor:
    if candidate.estimator.needs_data:
        estimate = candidate.estimator.estimate(inputs)
    else:
        estimate = static(candidate, inputs)
    measure = candidate.estimator.measure
    density = density if candidate.density is None else candidate.density
    return policy.plan(estimate, inputs, density=density, way=way, measure=measure).to_block_mask()


def _arranged(candidate: Alternative, inputs: Inputs, again: bool = False) -> Arranged:
    """A call in the order of a candidate; one that prunes is told how much to keep."""
    order = candidate.order
    if order.prunes and inputs.density is None:
        inputs = dataclasses.replace(inputs, density=candidate.density)
    return order.again(inputs) if again else order.arrange(inputs)


def _positions(order: Order, inputs: Inputs) -> Tensor | None:
    bare = dataclasses.replace(inputs, q=None, k=None, v=None)
    return order.arrange(bare).q_order
