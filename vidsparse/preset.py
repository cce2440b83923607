"""Presets: named policies with a schedule, and how their parameters are changed by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vidsparse.errors import BadInputError
from vidsparse.kernels.engines.case import Case
from vidsparse.of_model import OfModel
from vidsparse.own_code import digest
from vidsparse.parameters import (
    class_of,
    read_part,
    read_value,
    suggest,
    types_of,
    with_values,
)
from vidsparse.policies import fit
from vidsparse.policies.choice import Alternative
from vidsparse.policies.part import Part
from vidsparse.policies.parts import PARTS
from vidsparse.policies.policy import Policy
from vidsparse.policies.token_masks import is_exact
from vidsparse.schedule import Schedule

LEAST_TOKENS = 1_000  # with which a sequence may be sparse, where nobody says
EIGHT_BIT_BLOCK = 128  # tokens, below which Hopper's kernel in eight bits has no tiles


class Precision(StrEnum):
    """What attention computes in.

    Attributes:
        MODEL: The model's own dtype.
        INT8: Scores in INT8 and values in FP8, dense steps too (``kernels/engines/low_bit.py``).
    """

    MODEL = "model"
    INT8 = "int8"


class Dense(StrEnum):
    """What runs the dense steps of a run.

    Attributes:
        MODEL: The attention that the model calls by itself.
        FASTEST: The fastest dense engine that was measured on this kind of GPU, where one was.
        FLASH: The dense kernel of flash-attn-4.
        TRITON: Our own kernel, on a plan that keeps everything.
        TORCH_FLASH: A kernel of PyTorch itself, as the two that follow.
        TORCH_EFFICIENT: Its memory-efficient one.
        TORCH_CUDNN: That of cuDNN.
    """

    MODEL = "model"
    FASTEST = "fastest"
    FLASH = "flash"
    TRITON = "triton"
    TORCH_FLASH = "torch-flash"
    TORCH_EFFICIENT = "torch-efficient"
    TORCH_CUDNN = "torch-cudnn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything a session needs to know.

    Attributes:
        name: As given on the command line.
        summary: One sentence.
        source: Where the method comes from.
        policy: What to compute at full sparsity.
        schedule: When to compute how much.
        min_tokens: Shorter sequences run dense. None leaves it to the device: a GPU of the table
            runs dense what it would gain nothing with (``run_time.why_no_gain``), every other
            device what has fewer than 1,000 tokens, from which on a CPU gains at density 0.25
            (benchmarks/results/cpu_engine.json).
        precision: What attention computes in.
        dense: What runs dense steps.
        told: Parameters and parts that ``override`` was given: what is published for a model
            leaves them alone. Presets that do the same are equal whoever told them.
        own_code: Digest of the code of parts that are not of vidsparse, "" if all are: what was
            made with other code is not this preset's work.
    """

    name: str
    summary: str
    source: str
    policy: Policy
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    min_tokens: int | None = None
    precision: Precision = Precision.MODEL
    dense: Dense = Dense.MODEL
    told: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)
    own_code: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own_code", digest(self._all_parts()))
        if self.min_tokens is not None and self.min_tokens < 0:
            raise BadInputError(f"min_tokens must be at least 0, got {self.min_tokens}")
        if self.schedule.budgets is not None and self.policy.density is None:
            raise BadInputError(
                f"budgets are densities at full sparsity, and preset {self.name!r} has none for "
                "the layers that they leave out: give density too"
            )
        if self.schedule.budgets is not None and self.policy.order.prunes:
            raise BadInputError(
                f"preset {self.name!r} keeps as many tokens in all heads: leave budgets out"
            )
        if self.schedule.replan > 1 and not self.policy.can_reuse_plans:
            raise BadInputError(
                f"preset {self.name!r} cannot use plans again: they depend on levels or on "
                "observations of their own step (replan=1)"
            )
        if self.schedule.share_layers > 1 and (problem := self._why_layers_do_not_share()):
            raise BadInputError(f"preset {self.name!r} takes share_layers=1 alone: {problem}")
        if self.schedule.replan == 1 and self.policy.compensation.keeps_plans:
            raise BadInputError(
                "compensation=residual is measured at a dense step whenever a plan is made, and "
                "pays only while the plan is kept: give replan, of 2 steps at least, such as 5"
            )

    @property
    def least_tokens(self) -> int:
        """Fewer than these are never sparse."""
        return LEAST_TOKENS if self.min_tokens is None else self.min_tokens

    def why_too_few(self, tokens: int) -> str | None:
        """Why so many tokens are never sparse, in the user's words; None where they may be."""
        if tokens >= self.least_tokens:
            return None
        return f"{tokens:,} tokens are too few to gain (min_tokens is {self.least_tokens:,})"

    def block_on(self, device: str, tokens: int, head_dim: int) -> int:
        """Tokens in a block where nobody says, on a type of device: kernels in 8 bits want 128."""
        if self.policy.block is None and self.precision is not Precision.MODEL and device == "cuda":
            return EIGHT_BIT_BLOCK
        return self.policy.block_on(device, tokens, head_dim)

    def check_precision(
        self,
        why_not: Callable[[Case], list[str]],
        where: str,
        *,
        head_dim: int,
        device: str,
        arch: tuple[int, int] | None,
    ) -> None:
        """Refuse eight bits that a GPU has no kernel for, before a call does.

        Args:
            why_not: Reasons against a case.
            where: It would run, in the user's words.
            head_dim: Numbers of a head.
            device: Type of the device.
            arch: Compute capability of a CUDA device.

        Raises:
            BadInputError: With every reason.
        """
        if self.precision is Precision.MODEL:
            return
        block = self.block_on(device, 1 << 20, head_dim)  # of a long sequence
        case = Case(
            device_type=device, arch=arch, head_dim=head_dim, q_block=block, kv_block=block,
            offsets=self.policy.order.makes_clusters,
        )  # fmt: skip
        if reasons := why_not(case):
            raise BadInputError(
                f"{self.name} cannot run with precision={self.precision} {where}: "
                f"{'; '.join(reasons)}"
            )

    def _why_layers_do_not_share(self) -> str | None:
        """Why neighbouring layers cannot share a plan, in one clause; None if they can."""
        policy = self.policy
        orders, estimators = zip(*((e.order, e.estimator) for e in policy.candidates), strict=True)
        if not policy.can_reuse_plans:
            return "plans depend on levels or on observations of their own layer"
        if policy.static:
            return "the plan is made of the geometry, once for all layers"
        if any(each.per_layer for each in (*orders, *estimators)):
            return "its order or estimator differs from layer to layer"
        if policy.selector.tolerance_of_purse is not None:
            return "the error is measured of each layer, and that of a neighbour says nothing of it"
        if self.schedule.budgets is not None:
            return "budgets give each layer a density of its own"
        if policy.alternatives is not None and policy.alternatives.choices is not None:
            return "a file of choices names what the heads of each layer take"
        return None

    def parts(self) -> tuple[Any, ...]:
        """The objects that hold the parameters."""
        policy = self.policy
        alternatives = () if policy.alternatives is None else (policy.alternatives,)
        return policy, *policy.parts, *alternatives, self.schedule, self

    @property
    def of_model(self) -> tuple[OfModel, ...]:
        """What was found for one model, and is refused on others."""
        held = (getattr(p, f.name) for p in self._all_parts() for f in dataclasses.fields(p))
        return tuple({id(each): each for each in held if isinstance(each, OfModel)}.values())

    def _all_parts(self) -> tuple[Any, ...]:
        candidates = self.policy.candidates
        return *self.parts(), *(each for one in candidates for each in (one.order, one.estimator))

    def parameters(self) -> dict[str, Any]:
        """Every parameter that acts and that ``override`` takes, with its value."""
        values = {
            name: getattr(part, name) for part in self.parts() for name in types_of(type(part))
        }
        hidden = {*self.idle(), *fit.fixed(self.policy)}
        if not self.policy.can_reuse_plans:
            hidden.add("replan")
        if self._why_layers_do_not_share():
            hidden.add("share_layers")
        return {name: value for name, value in values.items() if name not in hidden}

    def plain_parameters(self) -> dict[str, str | float | bool | None]:
        """The same for JSON: a file of budgets is its path."""
        plain = (str, int, float, bool, type(None))
        return {
            name: value if isinstance(value, plain) else str(value)
            for name, value in self.parameters().items()
        }

    def idle(self) -> dict[str, str]:
        """Parameters that do nothing as the others stand, and why."""
        policy, idle = self.policy, fit.idle(self.policy)
        if policy.can_reuse_plans and policy.repeats and not policy.compensation.keeps_plans:
            idle["replan"] = "the plan is the same at every step"
        if policy.any_density is None:
            idle["budgets"] = "they stand in for a density, and there is none"
        if policy.estimator.observes:
            idle["precision"] = "blocks are observed in the model's own dtype"
        if is_exact(policy):
            idle["precision"] = "masks=token runs in the model's own dtype alone: give masks=block"
        if self.precision is not Precision.MODEL:
            idle["dense"] = f"with precision={self.precision} dense steps run in eight bits too"
        elif not (self.schedule.warmup or self.schedule.cooldown or self.schedule.dense_layers):
            idle["dense"] = "no step is dense, nor a layer"
        if not policy.branches_share:
            idle["share_branches"] = "what branches could share is the same anyway, or of each call"
        return idle

    def override(self, changes: Mapping[str, Any]) -> Preset:
        """The same preset with other parameters; strings are read as the parameter's type.

        A part, ``order``, ``estimator``, ``selector``, ``compensation`` or ``correction``, is given
        by its name, or as the object itself; its own parameters may be given in the same call. A
        parameter that replaces another, as ``p`` does ``density``, puts the preset's own out of
        action; a ``mean_density`` brings the ramp that it pays for (``Schedule.paid_by``).

        Raises:
            BadInputError: For a parameter that the preset does not have, with the near matches,
                one that does nothing as the others stand, or a value it cannot take.

        Example:
            >>> from vidsparse.presets import PRESETS
            >>> PRESETS["radial"].override({"decay": "0.4"}).parameters()["decay"]
            0.4
            >>> PRESETS["balanced"].override({"selector": "top_p", "p": 0.3}).parameters()["p"]
            0.3
        """
        named = {name: read_part(name, changes[name]) for name in PARTS if name in changes}
        given = {name: value for name, value in changes.items() if name not in PARTS}
        types = self._types(named)
        if unknown := next((name for name in given if name not in types), None):
            if unknown in GONE:
                raise BadInputError(f"{unknown} is no parameter any more: {GONE[unknown]}")
            near = suggest(unknown, types if named else self.parameters())
            raise BadInputError(f"preset {self.name!r} has no parameter {unknown!r}: {near}")
        values = {name: read_value(name, value, types[name]) for name, value in given.items()}
        changed = self._changed(named, values)
        if idle := [name for name in given if name in changed.idle()]:
            raise BadInputError(
                f"{idle[0]} does nothing in preset {self.name!r}: {changed.idle()[idle[0]]}"
            )
        return dataclasses.replace(changed, told=self.told | changes.keys())

    def _types(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The type of every parameter, once some parts are others."""
        kept = [self.policy, self.policy.alternatives, self.schedule, self]
        parts = [named.get(name, getattr(self.policy, name)) for name in PARTS]
        types: dict[str, Any] = {}
        for part in (*parts, *kept):
            types |= {} if part is None else types_of(class_of(part))
        return types

    def _changed(self, named: Mapping[str, Any], values: dict[str, Any]) -> Preset:
        """With other parts and values; what they replace of the preset's own is left out."""
        policy = self.policy
        parts = {
            name: with_values(named.get(name, getattr(policy, name)), values) for name in PARTS
        }
        alternatives = policy.alternatives
        if alternatives is not None:
            alternatives = dataclasses.replace(
                with_values(alternatives, values),
                candidates=tuple(
                    self._candidate(each, named, parts, values) for each in alternatives.candidates
                ),
            )
        own = types_of(Policy)
        of_policy = {name: value for name, value in values.items() if name in own}
        asked = {name: values[name] for name in DENSITIES if values.get(name) is not None}
        replaced = _replace_density(parts.values(), policy.any_density, values)
        if asked or replaced:
            of_policy |= {name: asked.get(name) for name in DENSITIES}
        policy = dataclasses.replace(policy, **parts, alternatives=alternatives, **of_policy)
        schedule = with_values(self.schedule, values)
        if "mean_density" in asked and "ramp_until" not in self.told | values.keys():
            schedule = schedule.paid_by(asked["mean_density"])
        if "replan" not in values and not policy.can_reuse_plans:
            schedule = dataclasses.replace(schedule, replan=1)
        if "share_layers" not in values and schedule.share_layers > 1:
            alone = dataclasses.replace(schedule, share_layers=1)
            made = dataclasses.replace(self, policy=policy, schedule=alone)
            schedule = alone if made._why_layers_do_not_share() else schedule
        own = {name: values[name] for name in types_of(Preset) if name in values}
        return dataclasses.replace(self, policy=policy, schedule=schedule, **own)

    def _candidate(
        self,
        candidate: Alternative,
        named: Mapping[str, Any],
        parts: Mapping[str, Any],
        values: dict[str, Any],
    ) -> Alternative:
        """An alternative; one that shared the old estimator shares the new one."""
        estimator = with_values(candidate.estimator, values)
        if "estimator" in named and candidate.estimator == self.policy.estimator:
            estimator = parts["estimator"]
        return dataclasses.replace(
            candidate, order=with_values(candidate.order, values), estimator=estimator
        )


GONE = {
    "dense_above": "give warmup, the share of the run's steps that is dense, such as 0.05",
    "full_below": "give ramp_until, the share of the run's steps after which all is at full "
    "sparsity, such as 0.3",
}
DENSITIES = ("density", "mean_density")


def _replace_density(
    parts: Iterable[Part], density: float | None, values: Mapping[str, Any]
) -> bool:
    """Whether values, or parts that take no density, stand in for that of the preset."""
    parts = list(parts)
    if density is None or any(part.in_place_of_density for part in parts):
        return True
    for part in parts:
        for name in part.idle(density).keys() - part.idle(None).keys():
            if values.get(name) is not None:
                return True
    return False
