"""``vidsparse plan --all``: every preset beside the others, to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidsparse.cli.options import PresetChanges
from vidsparse.cli.screen import answer, answer_json, note, plain_table
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid

if TYPE_CHECKING:
    from vidsparse.forecast import Forecast
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.preset import Preset
    from vidsparse.run_time import RunTimes
    from vidsparse.step_time import Shapes

DEFAULT = "balanced"  # of --preset, which --all leaves out


@dataclass(frozen=True, slots=True)
class Run:
    """What is planned.

    Attributes:
        checkpoint: Of which model.
        grid: Its tokens.
        steps: Denoising steps.
        gpu: Where; the measured one when None.
        compiled: Whether blocks are compiled.
        quantize: What the linear layers are in; 16 bits when None.
    """

    checkpoint: Checkpoint
    grid: TokenGrid
    steps: int
    gpu: str | None
    compiled: bool
    quantize: str | None = None

    @property
    def timed(self) -> bool:
        """Whether a time was asked for."""
        return self.gpu is not None or self.compiled or self.quantize is not None

    def forecast(self, preset: Preset) -> Forecast:
        """What a preset computes in it.

        Raises:
            BadInputError: As ``forecast.forecast`` does.
        """
        from vidsparse.forecast import forecast

        known = self.checkpoint
        calls = known.calls(self.steps)
        return forecast(preset, self.grid, calls, known.layers, known.head_dim)

    def predict(self, found: Forecast, shapes: Shapes) -> RunTimes:
        """The time of a run.

        Raises:
            BadInputError: As ``run_time.predict`` does.
        """
        from vidsparse.gpus import MEASURED
        from vidsparse.run_time import predict

        how = {"compiled": self.compiled, "quantized": self.quantize}
        return predict(found, shapes, self.gpu or MEASURED, **how)


@dataclass(frozen=True, slots=True)
class Choice:
    """A preset, planned.

    Attributes:
        preset: As it would run on the model.
        found: What it computes; None where that depends on what it sees.
        times: Of a run; None where that, or the model, is not known.
    """

    preset: Preset
    found: Forecast | None
    times: RunTimes | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "preset": self.preset.name,
            "mean_density": self.found and self.found.mean_density,
            "dense_steps_share": self.found and self.found.dense_steps_share,
            "seconds": self.times and self.times.sparse,
            "gain": self.times and self.times.gain,
            "over_stock": self.times and self.times.over_stock,
            "summary": self.preset.summary,
        }


def read_shapes(run: Run) -> tuple[Shapes | None, list[str]]:
    """What the time of a run follows from, or a sentence why nothing is known, if that is no error.

    Args:
        run: What is planned; a grid alone has no source, and nothing is said then.

    Raises:
        BadInputError: For a model of which too little is known, where a time was asked for.
    """
    from vidsparse.pipelines.running import shapes

    if not run.checkpoint.source:
        return None, []
    try:
        return shapes.shapes_of(run.checkpoint, run.grid), []
    except BadInputError as error:
        if run.timed:
            raise
        return None, [str(error)]


def plan_all(run: Run, changes: PresetChanges, preset: str, *, json: bool) -> None:
    """Say of every preset how much it computes and how long a run takes, the fastest first.

    Raises:
        BadInputError: For an unknown GPU, or another preset or a change, which would be of one.
    """
    from vidsparse.presets import PRESETS

    if preset != DEFAULT or changes.set or changes.density is not None or changes.precision:
        raise BadInputError(
            "--all plans every preset as it is: leave out --preset, --set, --density and "
            "--precision, or plan one preset"
        )
    shapes, why_none = read_shapes(run)
    choices, notes = [], dict.fromkeys([*run.checkpoint.about_calls(run.steps), *why_none])
    for each in list(PRESETS.values()):
        choice, said = _plan(each, run, shapes)
        choices.append(choice)
        notes |= dict.fromkeys(said)
    choices.sort(key=_order)
    if unknown := [choice.preset.name for choice in choices if choice.found is None]:
        notes[
            f"how much {', '.join(unknown)} compute depends on what they see: they run with a "
            "mean density too (--set mean_density=0.35)"
        ] = None
    if json:
        dense = next((each.times for each in choices if each.times), None)
        answer_json(
            {
                "grid": str(run.grid),
                "tokens": run.grid.tokens,
                "steps": run.checkpoint.calls(run.steps),
                "stock_seconds": dense and dense.whole(dense.stock),
                "dense_seconds": dense and dense.whole(dense.dense),
                "flash_attn_4_seconds": dense and dense.flash and dense.whole(dense.flash),
                "attention_share": dense and dense.dense.attention_share,
                "gpu": dense and dense.gpu.label,
                "presets": [choice.to_json() for choice in choices],
                "notes": list(notes),
            }
        )
        return
    answer(_table(choices))
    for sentence in notes:
        note(sentence)


def _plan(preset: Preset, run: Run, shapes: Shapes | None) -> tuple[Choice, list[str]]:
    from vidsparse.pipelines.published import apply
    from vidsparse.run_time import check_host_memory

    preset, said = apply(preset, run.checkpoint.release)
    notes = [said] if said else []
    if preset.policy.any_density is None and not preset.policy.static:
        return Choice(preset, None, None), notes
    found = run.forecast(preset)
    if shapes is None:
        return Choice(preset, found, None), notes
    try:
        check_host_memory(found, shapes)
    except BadInputError as error:
        return Choice(preset, found, None), [*notes, f"{preset.name}: {error}"]
    times = run.predict(found, shapes)
    found = found.all_dense() if times.stays_dense else found
    nothing = times.nothing_to_gain() if preset.name == DEFAULT else []
    return Choice(preset, found, times), [*notes, *times.basis(), *nothing]


def _order(choice: Choice) -> tuple[bool, bool, float, str]:
    """The fastest first, or the least dense; then what no time, and no density, is known of."""
    found, times = choice.found, choice.times
    value = times.sparse if times else found.mean_density if found else 0.0
    return times is None, found is None, value, choice.preset.name


def _table(choices: list[Choice]) -> Any:
    timed = next((choice.times for choice in choices if choice.times), None)
    table = plain_table(
        preset="left", mean_density="right", dense_steps="right",
        **({"a run": "right", "times dense": "right"} if timed else {}),
        **({"times stock": "right"} if timed and timed.how else {}), summary="left",
    )  # fmt: skip
    for row in _dense_rows(timed) if timed else ():
        table.add_row(*row)
    for choice in choices:
        found, times = choice.found, choice.times
        table.add_row(
            f"[bold]{choice.preset.name}[/bold]",
            f"{found.mean_density:.3f}" if found else "",
            f"{found.dense_steps_share:.0%}" if found else "",
            *(_of_time(times, bool(timed.how)) if timed else ()),
            f"[dim]{choice.preset.summary}",
        )
    return table


def _dense_rows(times: RunTimes) -> Iterator[tuple[str, ...]]:
    said = f"attention is {times.dense.attention_share:.0%} of it"
    runs = {"dense": (times.dense, f"{times.how}; {said}" if times.how else said)}
    if times.how:
        runs = {"stock": (times.stock, "unmodified diffusers")} | runs
    if times.flash is not None:
        runs["flash-attn-4"] = times.flash, "the same, where that is installed"
    bases = [times.dense, *([times.stock] if times.how else [])]
    for name, (step, said) in runs.items():
        over = [f"{base.seconds / step.seconds:.2f}x" for base in bases]
        yield name, "1.000", "100%", _minutes(times.whole(step)), *over, f"[dim]{said}"


def _of_time(times: RunTimes | None, stock: bool) -> list[str]:
    if times is None:
        return [""] * (2 + stock)
    over = [times.gain, *([times.over_stock] if stock else [])]
    return [_minutes(times.sparse), *(f"{each:.2f}x" for each in over)]


def _minutes(seconds: float) -> str:
    from vidsparse.run_time import minutes

    return minutes(seconds)
