"""What every part of a policy says of itself, so that nobody has to ask which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


class Part:
    """An order, an estimator, a selector, a compensation or a correction.

    A frozen dataclass of its parameters.

    What a part of one kind declares besides, and which of it has a default, its base class says.
    """

    __slots__ = ()

    in_place_of_density: ClassVar[str | None] = None
    """The parameter of its own that says how much is kept, where no density may."""

    fixed: ClassVar[frozenset[str]] = frozenset()
    """Parameters of the policy that can be but one thing beside this part."""

    def idle(self, density: float | None) -> Mapping[str, str]:
        """Parameters that do nothing as the others stand, and what decides in their place.

        Args:
            density: Of the policy.
        """
        return {}

    def refuses(self, policy: Policy) -> str | None:
        """Why it does not go with the other parts, in one sentence; None if it does."""
        return None
