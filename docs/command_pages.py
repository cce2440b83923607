"""A page for each command, from the command line's own help.

python docs/command_pages.py    # writes docs/commands/*.md anew
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from vidsparse.cli import app

FOLDER = Path(__file__).resolve().parent / "commands"
EXAMPLES = {
    "generate": (
        'vidsparse generate "a red circle moving right over a blue background" -o circle.mp4',
        "vidsparse generate --prompts prompts.txt --preset fast -o videos",
        'vidsparse generate "it turns its head" --model ./Wan2.1-I2V --image cat.png -o cat.mp4',
        'vidsparse generate "a cat" --model ./Wan2.1 --quantize int8 --offload group -o cat.mp4',
    ),
    "compare": (
        "vidsparse compare --prompts prompts.txt --preset draft,semantic --seeds 0,1 -o report",
        'vidsparse compare "a red circle" --set mean_density=0.25 --repeats 3 --noise-floor',
    ),
    "inspect": (
        'vidsparse inspect "a red circle" --preset balanced --layers 0,5 --at-steps 10 --heads 0,1',
    ),
    "plan": (
        "vidsparse plan --model wan2.1-14b --size 1280x720 --frames 81 --preset radial",
        "vidsparse plan --grid 21x45x80 --preset balanced --set mean_density=0.25 --json",
        "vidsparse plan --model wan2.1-14b --compiled --quantize fp8 --precision int8 --gpu h200",
    ),
    "tune": (
        "vidsparse tune --prompts prompts.txt --target-psnr 28 -o my.toml",
        "vidsparse tune --model wan2.1-1.3b --prompts prompts.txt --target-seconds 60 -o fast.toml",
    ),
    "calibrate": (
        "vidsparse calibrate sparse-vdit --prompts prompts.txt -o vdit.toml",
        "vidsparse calibrate lite-attention --model wan2.1-1.3b --error 0.05 -o lite.toml",
        "vidsparse calibrate paro --set density=0.3 -o paro.toml    # and paro.safetensors: masks",
    ),
    "bench": (
        "vidsparse bench kernels --density 0.25 --rounds 3",
        "vidsparse bench pipeline --model wan2.1-14b --layers 8 --compile -o wan.json",
        "vidsparse bench pipeline --model flux.1-dev --size 2048x2048 --quantize fp8 --compile",
    ),
    "presets": ("vidsparse presets", "vidsparse presets balanced --set selector=top_p --set p=0.3"),
    "doctor": ("vidsparse doctor",),
}
MORE = {
    "generate": "[What a video says of itself](../comparing.md#what-a-video-says-of-itself), "
    "[the stack](../setups.md#the-stack-in-one-command), "
    "[what a pipeline is given](../setups.md#what-a-pipeline-is-given)",
    "compare": "[How to read a report](../comparing.md#how-to-read-it)",
    "inspect": "[Looking closer](../comparing.md#looking-closer)",
    "plan": "[The schedule and the dial](../methods.md#the-schedule-and-the-dial)",
    "tune": "[A preset for your prompts](../comparing.md#a-preset-for-your-prompts)",
    "calibrate": "[What is found offline](../methods.md#what-is-found-offline)",
    "bench": "[Kernels on a GPU](../performance.md#kernels-on-a-gpu)",
    "presets": "[Methods](../methods.md)",
    "doctor": "[Kernels on a GPU](../performance.md#kernels-on-a-gpu)",
}
EXITS = "Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be done, 130 Ctrl-C."


class Parameter(NamedTuple):
    """One parameter of a command.

    Attributes:
        name: In Python.
        kind: Its type, without None.
        default: Its value if left out.
        info: What typer was told of it: an option, or an argument.
    """

    name: str
    kind: Any
    default: Any
    info: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, ArgumentInfo)


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    commands = [each.callback for each in app.registered_commands if each.callback]
    return {f"{command.__name__}.md": _page(command) for command in commands}


def _page(command: Callable[..., Any]) -> str:
    name, parameters = command.__name__, list(_parameters(command))
    arguments = [each for each in parameters if each.is_argument]
    usage = " ".join(["vidsparse", name, "[OPTIONS]", *(f"[{a.name.upper()}]" for a in arguments)])
    parts = [
        f"<!-- python docs/command_pages.py -->\n\n# vidsparse {name}",
        " ".join((inspect.getdoc(command) or "").split()),
        "\n".join(["```bash", *EXAMPLES[name], "```"]),
        f"{MORE[name]}. Usage: `{usage}`",
    ]
    if arguments:
        parts += ["## Arguments", _table("argument", arguments)]
    panels: dict[str, list[Parameter]] = {}
    for each in parameters:
        if not each.is_argument:
            panels.setdefault(each.info.rich_help_panel or "Options", []).append(each)
    for panel, options in panels.items():
        parts += [f"## {panel}", _table("option", options)]
    return "\n\n".join([*parts, EXITS]) + "\n"


def _parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """Those that the help lists, in its order."""
    for parameter in inspect.signature(command).parameters.values():
        kind, *told = get_args(parameter.annotation) or (parameter.annotation,)
        infos = [each for each in told if isinstance(each, OptionInfo | ArgumentInfo)]
        if infos and not infos[0].hidden:
            kinds = [each for each in get_args(kind) if each is not NoneType]
            single = kinds[0] if kinds and NoneType in get_args(kind) else kind
            yield Parameter(parameter.name, single, parameter.default, infos[0])


def _table(heading: str, parameters: Sequence[Parameter]) -> str:
    lines = [f"| {heading} | takes | what it does |", "| --- | --- | --- |"]
    lines += [f"| {_named(each)} | {_takes(each)} | {_does(each)} |" for each in parameters]
    return "\n".join(lines)


def _named(parameter: Parameter) -> str:
    if parameter.is_argument:
        return f"`{parameter.name.upper()}`"
    first = parameter.info.default  # typer takes the first name for a default, until it is used
    declared = [*([first] if isinstance(first, str) else []), *(parameter.info.param_decls or ())]
    declared = declared or [f"--{parameter.name.replace('_', '-')}"]
    names = [name for each in declared for name in each.split("/")]
    if parameter.kind is bool and parameter.default:
        names.append(f"--no-{names[0].removeprefix('--')}")
    return ", ".join(f"`{name}`" for name in sorted(names, key=lambda name: name[:2] != "--"))


def _takes(parameter: Parameter) -> str:
    """The kind of value, in words; empty for a switch."""
    kind, repeatable = parameter.kind, get_origin(parameter.kind) is list
    kind = get_args(kind)[0] if repeatable else kind
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(f"`{each.value}`" for each in kind)
    word = {bool: "", int: "number", float: "number", Path: "path"}.get(kind, "text")
    if parameter.info.min is not None and parameter.info.max is not None:
        word += f", {parameter.info.min:,} to {parameter.info.max:,}"
    return f"{word}, repeatable" if repeatable else word


def _does(parameter: Parameter) -> str:
    text = " ".join((parameter.info.help or "").split()).replace("|", "\\|")
    default = getattr(parameter.default, "value", parameter.default)
    if parameter.kind is bool or default is None or default is inspect.Parameter.empty:
        return text
    return f"{text} Default: `{default}`."


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for stale in FOLDER.glob("*.md"):
        if stale.name not in made:
            stale.unlink()


if __name__ == "__main__":
    main()
