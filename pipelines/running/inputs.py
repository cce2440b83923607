"""What a pipeline takes beside the prompt, read from the signature of its call."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from vidsparse.errors import BadInputError

IMAGE, LAST_IMAGE, VIDEO, MASK, CONTROL = "image", "last-image", "video", "mask", "control"
PARAMETERS: Mapping[str, tuple[str, ...]] = {  # of a call, the first that it has
    IMAGE: ("image", "images", "input_images", "cond_image", "reference_images", "ref_image"),
    LAST_IMAGE: ("last_image",),
    VIDEO: ("video",),
    MASK: ("mask_image", "mask_video", "mask", "control_mask"),
    CONTROL: ("control_image", "control_video"),
}
REFERENCES = ("reference_images", "ref_image")  # which say nothing of the size that is made
CONDITIONS = "conditions"  # objects that hold an image or a video each
WITH_CONDITIONS = (IMAGE, LAST_IMAGE, VIDEO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for a file.

    Attributes:
        role: What the file is, as the command line's options name it.
        parameter: Of the pipeline's call.
        needed: Whether the call cannot do without.
    """

    role: str
    parameter: str
    needed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a pipeline takes beside the prompt.

    Attributes:
        slots: Places for files, one a role.
        strength: The strength that it takes where it is told none; None where it takes none.
        frame_by_frame: Whether a video gives it as many frames as it makes.
        others: What else its call cannot do without.
    """

    slots: tuple[Slot, ...] = ()
    strength: float | None = None
    frame_by_frame: bool = False
    others: tuple[str, ...] = ()

    @property
    def shortens(self) -> bool:
        """Whether its strength is the share of a run's steps that it does."""
        return self.strength is not None and all(s.parameter != CONDITIONS for s in self.slots)

    def least_steps(self, least: int, strength: float | None) -> int:
        """Fewest steps to ask for, so that a strength leaves as many as there must be.

        Args:
            least: Fewest steps that the pipeline can do.
            strength: None is its own.

        Raises:
            BadInputError: For a strength that leaves none.
        """
        share = self.strength if strength is None else strength
        if not self.shortens or share is None:
            return least
        if not share > 0:
            raise BadInputError(
                f"strength must be more than 0, got {share:g}: no step would be done"
            )
        return math.ceil(least / share - 1e-9)

    def slot(self, role: str) -> Slot | None:
        """The place for a role, if there is one."""
        return next((slot for slot in self.slots if slot.role == role), None)

    def check(self, pipeline: str, given: Collection[str], strength: float | None = None) -> None:
        """Make sure that a pipeline takes what it is given, and is given what it needs.

        Args:
            pipeline: Its name, for a person.
            given: Roles of the files.
            strength: Its strength, if it is told one.

        Raises:
            BadInputError: When it does not, or is not.
        """
        for role in given:
            if self.slot(role) is None:
                raise BadInputError(f"{pipeline} takes no {role}: {self._said(role)}")
        if strength is not None and self.strength is None:
            raise BadInputError(f"{pipeline} takes no strength: leave --strength (strength=) out")
        for slot in self.slots:
            if slot.needed and slot.role not in given:
                raise BadInputError(
                    f"{pipeline} does not work from text alone: give it {_article(slot.role)}, "
                    f"--{slot.role} FILE"
                )
        if self.others:
            raise BadInputError(
                f"{pipeline} also needs {', '.join(self.others)}, for which the command line has "
                "no option: call it yourself, with vidsparse.sparsify"
            )

    def _said(self, role: str) -> str:
        takes = [f"--{slot.role}" for slot in self.slots]
        return f"leave --{role} out" + (f"; it takes {', '.join(takes)}" if takes else "")


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters


def makes_images(pipe: Any) -> bool:
    """Whether a pipeline makes images: it is told no number of frames, and given no video."""
    names = call_parameters(pipe).keys()
    return not any(name == "num_frames" or is_of_frames(name) for name in names)


def is_of_frames(parameter: str) -> bool:
    """Whether a parameter of a call takes the frames of a video."""
    return parameter == "video" or parameter.endswith("_video")


def inputs_of(pipe: Any, *, told: Collection[str] = ()) -> Inputs:
    """All that a pipeline takes beside the prompt, with or without its weights.

    Args:
        pipe: A diffusers pipeline.
        told: Parameters of its call that every request has.
    """
    parameters = call_parameters(pipe)
    conditions = condition_class(parameters)
    slots = tuple(_slots(parameters, with_conditions=conditions is not None))
    strength = parameters.get("strength")
    known = {slot.parameter for slot in slots} | {"self", "strength", *told}
    return Inputs(
        slots=slots,
        strength=1.0 if conditions is not None else strength and strength.default,
        frame_by_frame=conditions is None and _frame_by_frame(parameters, slots),
        others=tuple(
            name for name, each in parameters.items() if _has_no_default(each) and name not in known
        ),
    )


def condition_class(parameters: Mapping[str, inspect.Parameter]) -> Any:
    """The class of a call's ``conditions``, as their annotation names it; None without any."""
    if CONDITIONS not in parameters:
        return None
    kinds = (parameters[CONDITIONS].annotation, *get_args(parameters[CONDITIONS].annotation))
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def _slots(parameters: Mapping[str, inspect.Parameter], *, with_conditions: bool) -> Iterator[Slot]:
    """Where there is a strength, something must be there that it is the strength of."""
    changes = "strength" in parameters and not with_conditions
    for role, names in PARAMETERS.items():
        found = next((name for name in names if name in parameters), None)
        if with_conditions and role in WITH_CONDITIONS:
            yield Slot(role=role, parameter=CONDITIONS)
        elif found is not None:
            needed = changes or _has_no_default(parameters[found])
            yield Slot(role=role, parameter=found, needed=needed)


def _frame_by_frame(parameters: Mapping[str, inspect.Parameter], slots: tuple[Slot, ...]) -> bool:
    """Nobody says how many frames, or what is given is masked or followed frame by frame."""
    found = {slot.role: slot.parameter for slot in slots}
    follows = MASK in found or is_of_frames(found.get(CONTROL, ""))
    shows = VIDEO in found or follows
    return (
        shows
        and any(map(is_of_frames, found.values()))
        and (follows or "num_frames" not in parameters)
    )


def _has_no_default(parameter: inspect.Parameter) -> bool:
    named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return named and parameter.default is parameter.empty


def _article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"
