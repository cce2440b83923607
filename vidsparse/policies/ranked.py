"""The best blocks of each row, by number or by the mass that they hold: PSA, arXiv 2512.04025."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.select import Lists, select_top_k, select_top_p
from vidsparse.policies.selectors import Selection, Selector, comparable

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked(Selector):
    """In every row equally many of the best blocks, as the density says; or those that hold p.

    Attributes:
        p: Share of each row's mass, in (0, 1], that the best blocks hold, the last of them
            included; a density replaces it.
    """

    p: float | None = None

    equal_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.p is not None and not 0 < self.p <= 1:
            raise BadInputError(f"p must be in (0, 1], got {self.p:g}")

    @property
    def has_amount(self) -> bool:
        """Whether there is a share of the mass."""
        return self.p is not None

    def further(self, share: float) -> Ranked | None:
        """With a larger p."""
        if self.p is None:
            return None
        return dataclasses.replace(self, p=min(1.0, self.p + share))

    def idle(self, density: float | None) -> Mapping[str, str]:
        """A density says how many are kept."""
        if density is None:
            return {}
        return {"p": "the density says how much is kept, so give one of the two"}

    def refuses(self, policy: Policy) -> str | None:
        """It needs one of the two."""
        if self.p is None and policy.any_density is None:
            return "selector=ranked needs p, the share of the mass to keep in (0, 1], or a density"
        return None

    def select(self, these: Selection) -> Lists:
        """Keep the best of every row."""
        scores, number = these.estimate.scores, these.estimate.scores.shape[-1]
        if these.density is not None:
            count = max(these.least, round(these.density * number))
            return select_top_k(scores, count, always=these.always)
        assert self.p is not None
        p = 1.0 - these.way * (1.0 - self.p)
        mass = comparable(scores, these.measure)
        return select_top_p(mass, p, min_count=these.least, always=these.always)
