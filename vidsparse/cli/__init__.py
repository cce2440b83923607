"""The command line: one file for each command; what may be slow is imported when it is needed.

Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be done, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import vidsparse
from vidsparse.cli.bench import bench
from vidsparse.cli.calibrate import calibrate
from vidsparse.cli.compare import compare
from vidsparse.cli.doctor import doctor
from vidsparse.cli.generate import generate
from vidsparse.cli.inspect import inspect
from vidsparse.cli.options import flatten
from vidsparse.cli.plan import plan
from vidsparse.cli.presets import presets
from vidsparse.cli.screen import complain, quiet_libraries
from vidsparse.cli.tune import tune
from vidsparse.errors import BadInputError, VidsparseError

_UsageError: Any = typer.BadParameter.__base__  # of click, wherever typer keeps it


class _InterruptedError(Exception):
    """Ctrl-C, in a form that no version of typer turns into something else."""


class _Group(typer.core.TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


app = typer.Typer(
    cls=_Group,
    help="Sparse attention for video diffusion: generate, compare with dense, plan, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _each in (generate, compare, inspect, plan, tune, calibrate, bench, presets, doctor):
    app.command()(flatten(_each))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"vidsparse {vidsparse.__version__}")
        raise typer.Exit


@cache
def _command() -> Any:
    """The commands with all their options: once is enough for who runs several."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    try:
        with quiet_libraries():
            given = {"prog_name": "vidsparse", "obj": list(arguments), "standalone_mode": False}
            code = _command()(list(arguments), **given)
            return code if isinstance(code, int) else 0
    except _UsageError as error:
        if message := error.format_message():  # none where the help was shown instead
            complain(message)
        return 2
    except (KeyboardInterrupt, _InterruptedError):
        complain("interrupted; files already finished are whole")
        return 130
    except BadInputError as error:
        complain(error)
        return 2
    except VidsparseError as error:
        complain(error)
        return 1
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        return 1


def main() -> None:
    """Entry point of the command ``vidsparse``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a prompt's letters
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
