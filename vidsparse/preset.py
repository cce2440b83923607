"""Presets: named policies with a schedule, and how their parameters are changed by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from vidsparse.budgets import Budgets
from vidsparse.errors import BadInputError
from vidsparse.policies.compensation import Compensation
from vidsparse.policies.parts import ESTIMATORS, ORDERS
from vidsparse.policies.policy import Policy
from vidsparse.schedule import Schedule


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
            raise BadInputError(
                f"preset {self.name!r} cannot use plans again: they depend on levels or on "
                "observations of their own step (replan=1)"
            )
        if self.schedule.replan == 1 and self.policy.compensation is Compensation.RESIDUAL:
            raise BadInputError(
                "compensation=residual is measured at a dense step whenever a plan is made, and "
                "pays only while the plan is kept: give replan, of 2 steps at least, such as 5"
            )

    def parameters(self) -> dict[str, Any]:
        """Every parameter that ``override`` takes, with its value."""
        values: dict[str, Any] = {}
        for part in self.parts():
            for field in dataclasses.fields(part):
                values[field.name] = getattr(part, field.name)
        return {name: values[name] for name in self._types()}

    def parts(self) -> tuple[Any, ...]:
        """The objects that hold the parameters."""
        policy = self.policy
        return policy, policy.order, policy.estimator, self.schedule, self

    def _types(self) -> dict[str, Any]:
        """The type of every parameter: the fields of the parts, less those that hold a part."""
        types: dict[str, Any] = {}
        for part in self.parts():
            types |= get_type_hints(type(part))
        held = ("estimator", "order", "alternatives", "policy", "schedule")
        held += ("name", "summary", "source")
        return {
            name: kind
            for name, kind in types.items()
            if name not in held and get_origin(kind) is not ClassVar
        }

    def override(self, changes: Mapping[str, Any]) -> Preset:
        """The same preset with other parameters; strings are read as the parameter's type.

        Raises:
            BadInputError: For a parameter the preset does not have, with the near matches, or a
                value it cannot take.

        Example:
            >>> from vidsparse.presets import PRESETS
            >>> PRESETS["radial"].override({"decay": "0.4"}).parameters()["decay"]
            0.4
        """
        changes = dict(changes)
        parts = {name: changes.pop(name) for name in ("order", "estimator") if name in changes}
        if parts:
            return self._with_parts(parts).override(changes)
        known = self.parameters()
        if unknown := [name for name in changes if name not in known]:
            raise BadInputError(
                f"preset {self.name!r} has no parameter {unknown[0]!r}: "
                f"{suggest(unknown[0], known)}"
            )
        if {"decay", "density"} <= changes.keys():
            raise BadInputError("give decay or density, not both: each sets the width of the mask")
        types = self._types()
        values = {name: read_value(name, value, types[name]) for name, value in changes.items()}

        def changed(part: Any) -> Any:
            names = {field.name for field in dataclasses.fields(part)}
            return dataclasses.replace(part, **{n: v for n, v in values.items() if n in names})

        own = {field.name for field in dataclasses.fields(self.policy)}
        policy = dataclasses.replace(
            self.policy,
            order=changed(self.policy.order),
            estimator=changed(self.policy.estimator),
            alternatives=tuple(
                dataclasses.replace(
                    each, order=changed(each.order), estimator=changed(each.estimator)
                )
                for each in self.policy.alternatives
            ),
            **{name: value for name, value in values.items() if name in own},
        )
        return dataclasses.replace(
            self,
            policy=policy,
            schedule=changed(self.schedule),
            min_tokens=values.get("min_tokens", self.min_tokens),
        )

    def _with_parts(self, parts: Mapping[str, Any]) -> Preset:
        """The same preset with another order or estimator, given by name or as the part itself."""
        tables: dict[str, Mapping[str, type]] = {"order": ORDERS, "estimator": ESTIMATORS}
        made: dict[str, Any] = {}
        for name, part in parts.items():
            made[name] = part
            if isinstance(part, str):
                if part not in tables[name]:
                    raise BadInputError(f"unknown {name} {part!r}: {suggest(part, tables[name])}")
                made[name] = tables[name][part]()
        if "estimator" in made:  # those that shared the old one share the new one
            made["alternatives"] = tuple(
                dataclasses.replace(each, estimator=made["estimator"])
                if each.estimator == self.policy.estimator
                else each
                for each in self.policy.alternatives
            )
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, **made))


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
