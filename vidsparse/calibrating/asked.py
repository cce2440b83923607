"""What is to be found of a preset, and which presets there is something to find of."""

from __future__ import annotations

from dataclasses import dataclass

from vidsparse.calibrating.finders import Choices, Margins
from vidsparse.errors import BadInputError
from vidsparse.parameters import suggest
from vidsparse.policies.choosing import ChooseBy
from vidsparse.preset import Preset
from vidsparse.presets import METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be found.

    Attributes:
        preset: Of vidsparse, with other parameters or without.
        table: The parameter that is found: choices or margins.
        error: Relative L1 of the output at most, where margins are found.
        masks: Whether the masks of all heads are made and kept too.
    """

    preset: Preset
    table: str
    error: float = 0.05
    masks: bool = False

    @classmethod
    def of(cls, preset: Preset, error: float | None, masks: bool | None) -> Asked:
        """What a preset asks for.

        Args:
            preset: Of vidsparse.
            error: None for the paper's.
            masks: None for as its paper does.

        Raises:
            BadInputError: When it finds nothing offline, or what is given does not go with it.
        """
        known = {method.name: found for method in METHODS if (found := table_of(method))}
        table = known.get(preset.name)
        if table is None:
            raise BadInputError(
                f"{preset.name} has nothing to calibrate: {suggest(preset.name, known)}"
            )
        if preset.of_model:
            raise BadInputError(f"{table} are what is found: leave {table} out")
        rule = preset.policy.alternatives
        has_masks = rule is not None and rule.choose_by is ChooseBy.BLOCKINESS
        if masks and not has_masks:
            raise BadInputError(
                f"{preset.name} keeps no masks: leave --store-masks (store_masks=) out"
            )
        if error is not None and table != "margins":
            raise BadInputError(
                f"{preset.name} is calibrated to no error: leave --error (error=) out"
            )
        error = 0.05 if error is None else error
        if not 0 < error < 1:
            raise BadInputError(f"error must be in (0, 1), a relative L1, got {error:g}")
        return cls(
            preset=preset, table=table, error=error, masks=has_masks if masks is None else masks
        )

    def finder(self, preset: Preset) -> Choices | Margins:
        """What sees the dense runs.

        Args:
            preset: As it runs on the model.
        """
        return Choices(preset) if self.table == "choices" else Margins(preset, self.error)


def table_of(preset: Preset) -> str | None:
    """The parameter that calibrating a preset finds; None where there is nothing to find."""
    rule = preset.policy.alternatives
    if rule is not None:  # what decides by recall is asked for each video
        return None if rule.choose_by is ChooseBy.RECALL else "choices"
    return "margins" if preset.policy.estimator.observes else None
