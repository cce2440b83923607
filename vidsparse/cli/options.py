"""Options that commands share, and how a command takes them as one object."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.preset import Preset

MOST_NUMBERS = 1000
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]


def ray_option() -> Any:
    """The option that spreads work over a cluster."""
    return option(
        "Spread the work over a Ray cluster: HOST:PORT, auto, or local for this machine.",
        "--ray",
        panel="Cluster",
    )


def option(help: str, *names: str, panel: str | None = None) -> Any:
    """An option with its help; names are made of the parameter's unless given."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetChanges:
    """What a command changes in its presets."""

    density: Annotated[
        float | None,
        option("Share of query-key pairs at full sparsity, in (0, 1].", panel="Sparsity"),
    ] = None
    precision: Annotated[
        str | None,
        option(
            "What attention computes in: model, or int8 on a GPU, dense steps too.",
            panel="Sparsity",
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        option(
            "KEY=VALUE: change a part or a parameter (see `vidsparse presets NAME`); repeatable.",
            panel="Sparsity",
        ),
    ] = None

    def given(self) -> list[str]:
        """Which of these options were given."""
        return [f"--{name}" for name in ("density", "precision", "set") if getattr(self, name)]

    def preset(self, name: str) -> Preset:
        """Find a preset and change it.

        Raises:
            BadInputError: For an unknown preset, parameter or value.
        """
        from vidsparse.presets import find_preset

        changes: dict[str, Any] = {}
        for text in self.set or []:
            key, equals, value = text.partition("=")
            if not equals:
                raise BadInputError(f"--set {text!r} must be KEY=VALUE, such as --set density=0.3")
            _once(changes, key.strip(), value)
        for key in ("density", "precision"):
            if (value := getattr(self, key)) is not None:
                _once(changes, key, value)
        return find_preset(name).override(changes)


def whole_numbers(name: str, text: str) -> list[int]:
    """Read whole numbers from 0 with commas between.

    Raises:
        BadInputError: When it is something else, or more than ``MOST_NUMBERS``.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,19}", part) for part in parts):
        raise BadInputError(f"{name} takes numbers from 0 with commas between, got {text!r}")
    if len(parts) > MOST_NUMBERS:
        raise BadInputError(f"{name} takes at most {MOST_NUMBERS:,} numbers, got {len(parts):,}")
    return [int(part) for part in parts]


def _once(changes: dict[str, Any], name: str, value: Any) -> None:
    if name in changes:
        raise BadInputError(
            f"{name} is given twice, as {changes[name]} and as {value}: give it once"
        )
    changes[name] = value


Overwrite = Annotated[bool, option("Replace a file that is in the way.", "--overwrite")]


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise BadInputError for a file that is there already, unless it may be replaced."""
    if path.exists() and not overwrite:
        raise BadInputError(f"{path} exists: give --overwrite to replace it, or another with -o")


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of a command's dataclass parameters as options of their own.

    Args:
        command: Its parameters are typer's, or dataclasses whose fields are.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _parameters_of(kind)
        else:
            only = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=only, annotation=kind))

    def call(**values: Any) -> None:
        for name, kind in groups.items():
            fields = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
            values[name] = kind(**fields)
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def _parameters_of(kind: type) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]
