"""Train the pipeline that ships, stage by stage, each within its minutes.

    python -m examples.train_tiny OUT decoder=4 judge=2.5
    python -m examples.train_tiny OUT dit=8 evaluate=1 --span 0 0.5

The stages share one process, one folder and one time table; a stage that ends early leaves its
time to the next. See README.md beside this file.
"""

from __future__ import annotations

import time

_START = time.monotonic()  # before the imports, which take their time too

import argparse  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from . import decoder, dit, evaluate, judge, text  # noqa: E402
from .common import Clock, choose_device, say  # noqa: E402
from .export import export  # noqa: E402

_RESERVES = {  # seconds
    "decoder": 8,
    "judge": 8,
    "text": 2,
    "dit": 10,
    "evaluate": 8,
    "shipped": 8,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line names, in its order."""
    options = _parse(arguments)
    device = "cpu" if options.small else choose_device()
    torch.manual_seed(options.seed)
    begins = 0.0
    say(f"on {device}, torch {torch.__version__}, {time.monotonic() - _START:.0f} s to import")
    for stage, minutes in options.stages:
        start = _START + 60 * begins if not options.small else time.monotonic()
        steps = options.small or None
        clock = Clock(minutes, _RESERVES[stage], steps=steps, start=start)
        say(f"--- {stage}, {minutes:g} minutes")
        _run(stage, options, clock, device)
        begins += minutes
    if options.export:
        export(options.folder, options.export)


def _run(stage: str, options: Any, clock: Clock, device: str) -> None:
    folder, small = options.folder, bool(options.small)
    match stage:
        case "decoder":
            settings = decoder.SMALL if small else decoder.Settings()
            decoder.train_decoder(folder, clock, settings, device)
        case "judge":
            judge.train_judge(folder, clock, judge.SMALL if small else judge.Settings(), device)
        case "text":
            text.train_text(folder, clock, text.SMALL if small else text.Settings(), device)
        case "dit":
            settings = dit.SMALL if small else dit.FULL
            dit.train_dit(folder, clock, settings, tuple(options.span), device)
        case "evaluate" | "shipped":
            settings = evaluate.SMALL if small else evaluate.Settings()
            shipped = stage == "shipped"
            evaluate.evaluate(folder, clock, settings, device, shipped=shipped)


def _stage(words: str) -> tuple[str, float]:
    name, _, minutes = words.partition("=")
    if name not in _RESERVES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_RESERVES)}")
    return name, float(minutes or 1)


def _parse(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser("python -m examples.train_tiny", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint: read if there, written")
    parser.add_argument("stages", type=_stage, nargs="*", help="NAME=MINUTES, in order")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), help="of dit's plan")
    parser.add_argument("--export", type=Path, help="then write the pipeline here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", type=int, default=0, metavar="STEPS", help="a trial on a CPU")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
