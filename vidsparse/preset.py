"""Presets: named policies with a schedule, and how their parameters are changed by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import Any, get_args, get_type_hints

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.policies.choice import Alternative
from vidsparse.policies.part import Part
from vidsparse.policies.parts import KINDS, PARTS
from vidsparse.policies.policy import Policy
from vidsparse.schedule import Schedule

OF_THEIR_STEP = "they depend on levels or on observations of their own step (replan=1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything a session needs to know.

    Attributes:
        name: As given on the command line.
        summary: One sentence.
        source: Where the method comes from.
        policy: What to compute at full sparsity.
        schedule: When to compute how much.
        min_tokens: Shorter sequences run dense: from about 1,000 tokens on, the ``cpu`` engine
            gains at density 0.25 (benchmarks/results/cpu_engine.json).
    """

    name: str
    summary: str
    source: str
    policy: Policy
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    min_tokens: int = 1_000

    def __post_init__(self) -> None:
        if self.min_tokens < 0:
            raise BadInputError(f"min_tokens must be at least 0, got {self.min_tokens}")
        if self.schedule.budgets is not None and self.policy.density is None:
            raise BadInputError(
                f"preset {self.name!r} has no density that budgets could replace: give it one"
            )
        if self.schedule.replan > 1 and not self.policy.can_reuse_plans:
            raise BadInputError(f"preset {self.name!r} cannot use plans again: {OF_THEIR_STEP}")
        if self.schedule.replan == 1 and self.policy.compensation.keeps_plans:
            raise BadInputError(
                "compensation=residual is measured at a dense step whenever a plan is made, and "
                "pays only while the plan is kept: give replan, of 2 steps at least, such as 5"
            )

    def parts(self) -> tuple[Any, ...]:
        """The objects that hold the parameters."""
        policy = self.policy
        alternatives = () if policy.alternatives is None else (policy.alternatives,)
        return policy, *policy.parts, *alternatives, self.schedule, self

    def parameters(self) -> dict[str, Any]:
        """Every parameter that acts and that ``override`` takes, with its value."""
        values = {
            name: getattr(part, name) for part in self.parts() for name in types_of(type(part))
        }
        idle = self.idle()
        return {name: value for name, value in values.items() if name not in idle}

    def idle(self) -> dict[str, str]:
        """Parameters that do nothing as the others stand, and why."""
        policy, idle = self.policy, self.policy.idle()
        if not policy.can_reuse_plans:
            idle["replan"] = OF_THEIR_STEP
        elif policy.static and not policy.compensation.keeps_plans:
            idle["replan"] = "the plan is the same at every step"
        if policy.density is None:
            idle["budgets"] = "they stand in for a density, and there is none"
        if policy.static or not (policy.can_reuse_plans or not policy.order.static):
            idle["share_branches"] = "its branches have nothing to share but what all calls do"
        return idle

    def override(self, changes: Mapping[str, Any]) -> Preset:
        """The same preset with other parameters; strings are read as the parameter's type.

        A part, ``order``, ``estimator``, ``selector`` or ``compensation``, is given by its name, or
        as the object itself; its own parameters may be given in the same call. A parameter that
        replaces another, as ``p`` does ``density``, puts the preset's own out of action.

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
            near = suggest(unknown, types if named else self.parameters())
            raise BadInputError(f"preset {self.name!r} has no parameter {unknown!r}: {near}")
        values = {name: read_value(name, value, types[name]) for name, value in given.items()}
        changed = self._changed(named, values)
        if idle := [name for name in given if name in changed.idle()]:
            raise BadInputError(
                f"{idle[0]} does nothing in preset {self.name!r}: {changed.idle()[idle[0]]}"
            )
        return changed

    def _types(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The type of every parameter, once some parts are others."""
        kept = [self.policy, self.policy.alternatives, self.schedule, self]
        parts = [named.get(name, getattr(self.policy, name)) for name in PARTS]
        types: dict[str, Any] = {}
        for part in (*parts, *kept):
            types |= {} if part is None else types_of(_class_of(part))
        return types

    def _changed(self, named: Mapping[str, Any], values: dict[str, Any]) -> Preset:
        """With other parts and values; what they replace of the preset's own is left out."""
        policy = self.policy
        parts = {name: _with(named.get(name, getattr(policy, name)), values) for name in PARTS}
        alternatives = policy.alternatives
        if alternatives is not None:
            alternatives = dataclasses.replace(
                _with(alternatives, values),
                candidates=tuple(
                    self._candidate(each, named, parts, values) for each in alternatives.candidates
                ),
            )
        own = types_of(Policy)
        of_policy = {name: value for name, value in values.items() if name in own}
        if "density" not in values and _replace_density(parts.values(), policy.density, values):
            of_policy["density"] = None
        return dataclasses.replace(
            self,
            policy=dataclasses.replace(policy, **parts, alternatives=alternatives, **of_policy),
            schedule=_with(self.schedule, values),
            min_tokens=values.get("min_tokens", self.min_tokens),
        )

    def _candidate(
        self,
        candidate: Alternative,
        named: Mapping[str, Any],
        parts: Mapping[str, Any],
        values: dict[str, Any],
    ) -> Alternative:
        """An alternative; one that shared the old estimator shares the new one."""
        estimator = _with(candidate.estimator, values)
        if "estimator" in named and candidate.estimator == self.policy.estimator:
            estimator = parts["estimator"]
        return dataclasses.replace(
            candidate, order=_with(candidate.order, values), estimator=estimator
        )


def types_of(part: type) -> dict[str, Any]:
    """The parameters of a part, with their types: its fields, less those that hold parts."""
    held = ("alternatives", "candidates", "policy", "schedule", "name", "summary", "source")
    hints = get_type_hints(part)
    names = [field.name for field in dataclasses.fields(part)]
    return {name: hints[name] for name in names if name not in (*PARTS, *held)}


def _with(part: Any, values: Mapping[str, Any]) -> Any:
    """A part with the values that are its own; a class is made an object of."""
    own = {name: values[name] for name in types_of(_class_of(part)) if name in values}
    return part(**own) if isinstance(part, type) else dataclasses.replace(part, **own)


def _class_of(part: Any) -> type:
    return part if isinstance(part, type) else type(part)


def _replace_density(
    parts: Iterable[Part], density: float | None, values: Mapping[str, Any]
) -> bool:
    """Whether values, or parts that take no density, stand in for that of the preset."""
    parts = list(parts)
    if density is None or any(part.in_place_of_density for part in parts):
        return True
    return any(values.get(name) is not None for part in parts for name in part.idle(density))


def read_part(name: str, value: Any) -> Any:
    """The class of a part by its name; a part itself is left as it is.

    Raises:
        BadInputError: With the near matches, when there is none of this name, or for another kind.
    """
    table = PARTS[name]
    if isinstance(value, str):
        text = value.strip().lower()
        if text not in table:
            raise BadInputError(f"unknown {name} {value!r}: {suggest(text, table)}")
        return table[text]
    if not isinstance(value, KINDS[name]):
        raise BadInputError(f"{name} takes {' or '.join(table)}, or such a part, got {value!r}")
    return value


def read_value(name: str, value: Any, kind: Any) -> Any:
    """Read text as the type of a parameter, and a path as a file of budgets.

    Raises:
        BadInputError: Naming what the parameter takes.
    """
    options = get_args(kind) or (kind,)
    if isinstance(value, PathLike):
        value = str(value)
    if not isinstance(value, str):
        return _of_type(name, value, options)
    text = value.strip().lower()
    if type(None) in options and text == "none":
        return None
    kind = options[0]
    if kind is Budgets:
        return Budgets.read(value.strip())
    try:
        return _SWITCH[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise BadInputError(f"{name} takes {_describe(kind)}, got {value!r}") from None


def _of_type(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and float in options:
        return float(value)
    is_switch = isinstance(value, bool) and bool not in options
    if is_switch or not isinstance(value, options):
        raise BadInputError(f"{name} takes {_describe(options[0])}, got {value!r}")
    return value


_SWITCH = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False
}  # fmt: skip


def _describe(kind: type) -> str:
    if issubclass(kind, StrEnum):
        return " or ".join(kind)
    words = {bool: "true or false", int: "a whole number", Budgets: "the path of a JSON file"}
    return words.get(kind, "a number")


def suggest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, and what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}there is {', '.join(known)}"
