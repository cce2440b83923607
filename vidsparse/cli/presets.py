"""``vidsparse presets``: what there is, and what can be changed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from vidsparse.cli.options import Json, PresetChanges
from vidsparse.cli.screen import answer, answer_json, plain_table
from vidsparse.errors import BadInputError
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS


def presets(
    changes: PresetChanges,
    name: Annotated[str | None, typer.Argument(help="Show this one's parameters.")] = None,
    json: Json = False,
) -> None:
    """List the presets, or the parameters of one."""
    if name is None:
        if changes.set or changes.density is not None:
            raise BadInputError("--set and --density change one preset: name it")
        if json:
            answer_json({"presets": [_head(preset) for preset in PRESETS.values()]})
            return
        table = plain_table(preset="left", summary="left", source="left")
        for preset in PRESETS.values():
            table.add_row(f"[bold]{preset.name}[/bold]", preset.summary, f"[dim]{preset.source}")
        answer(table)
        return
    preset = changes.preset(name)
    if json:
        answer_json(_head(preset) | {"parameters": describe(preset)})
        return
    answer(f"[bold]{preset.name}[/bold]: {preset.summary}\n[dim]{preset.source}[/dim]\n")
    table = plain_table(parameter="left", value="right", meaning="left")
    for parameter, facts in describe(preset).items():
        table.add_row(parameter, str(facts["value"]), facts["meaning"])
    answer(table)


def describe(preset: Preset) -> dict[str, dict[str, Any]]:
    """Say of every parameter its value, the part it belongs to and what it means."""
    meanings: dict[str, tuple[str, str]] = {}
    for part in preset.parts():
        sentences = read_attributes(type(part))
        for field in dataclasses.fields(part):
            meaning = sentences.get(field.name, "") + _choices(getattr(part, field.name))
            meanings[field.name] = type(part).__name__, meaning
    return {
        name: {"value": value, "part": meanings[name][0], "meaning": meanings[name][1]}
        for name, value in preset.parameters().items()
    }


def read_attributes(cls: type) -> dict[str, str]:
    """Read the Attributes section of a class's docstring, as name to sentence."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()) for name, text in entries}


def _choices(value: Any) -> str:
    return f" One of {', '.join(type(value))}." if isinstance(value, StrEnum) else ""


def _head(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "source": preset.source,
        "estimator": type(preset.policy.estimator).__name__,
        "selector": str(preset.policy.selector),
        "compensation": str(preset.policy.compensation),
    }
