"""``vidsparse presets``: what there is, and what can be changed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from vidsparse.cli.options import Json, PresetChanges
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.preset import Preset


def presets(
    changes: PresetChanges,
    name: Annotated[
        str | None,
        typer.Argument(help="Show this one's; FILE.py:NAME, or FILE.toml."),
    ] = None,
    json: Json = False,
) -> None:
    """List the presets, or the parameters of one."""
    from vidsparse.presets import PRESETS, register_offered

    if name is None:
        if changes.set or changes.density is not None:
            raise BadInputError("--set and --density change one preset: name it")
        for problem in register_offered():
            note(problem)
        if json:
            answer_json({"presets": [_head(preset) for preset in PRESETS.values()]})
            return
        table = plain_table(preset="left", summary="left", source="left")
        for preset in PRESETS.values():
            table.add_row(f"[bold]{preset.name}[/bold]", preset.summary, f"[dim]{preset.source}")
        answer(table)
        return
    preset = changes.preset(name)
    published = read_published(preset.name)
    if json:
        answer_json(_head(preset) | {"parameters": describe(preset), "published": published})
        return
    answer(f"[bold]{preset.name}[/bold]: {preset.summary}\n[dim]{preset.source}[/dim]\n")
    parts = plain_table(part="left", choice="left")
    for part, choice in read_parts(preset).items():
        parts.add_row(part, "\n".join(choice) if isinstance(choice, list) else choice)
    answer(parts)
    table = plain_table(parameter="left", value="right", meaning="left")
    for parameter, facts in describe(preset).items():
        table.add_row(parameter, str(facts["value"]), escape(facts["meaning"]))
    answer(table)
    if published:
        answer(_published_table(published))
    for sentence in read_told(preset):
        note(sentence)


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
        for name, value in preset.plain_parameters().items()
    }


def read_told(preset: Preset) -> list[str]:
    """What a preset file says beside the preset, a line for each table."""
    from vidsparse.preset_files import PresetFile

    path = Path(preset.source)
    if path.suffix != ".toml":
        return []
    told = PresetFile.read(path).told
    return [
        f"{name}: {', '.join(f'{key} {_shown(value)}' for key, value in table.items())}"
        for name, table in told.items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_shown(each)}' for key, each in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_published(preset: str) -> list[dict[str, Any]]:
    """What is published of a preset's method for some models, which those then run with."""
    from vidsparse.pipelines.published import published_for

    return [
        {"model": release, "settings": dict(row.settings), "source": row.source}
        for row in published_for(preset)
        for release in row.releases
    ]


def _published_table(rows: list[dict[str, Any]]) -> Any:
    from vidsparse.pipelines.published import describe as settings_of

    table = plain_table(model="left", published_settings="left", source="left")
    for row in rows:
        table.add_row(row["model"], settings_of(row["settings"]), f"[dim]{row['source']}")
    return table


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
        **read_parts(preset),
    }


def read_parts(preset: Preset) -> dict[str, str | list[str]]:
    """Say what the policy is made of; alternatives are what a head may take instead."""
    from vidsparse.policies.parts import ESTIMATORS, ORDERS, PARTS, part_name

    policy = preset.policy
    parts: dict[str, str | list[str]] = {
        name: part_name(table, getattr(policy, name)) for name, table in PARTS.items()
    }
    if policy.alternatives is not None:
        parts["alternatives"] = [
            f"{part_name(ORDERS, each.order)}, {part_name(ESTIMATORS, each.estimator)}"
            for each in policy.alternatives.candidates
        ]
    return parts
