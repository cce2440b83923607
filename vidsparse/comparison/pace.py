"""How long many pieces of work will still take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean


class Pace:
    """Guesses the time left: of a kind that was seen, its mean; of another, the mean of all.

    Args:
        kinds: Of all pieces that are still to do.
        known: Seconds that pieces took before, by kind.
        workers: How many pieces are done at a time.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        known: dict[str, list[float]] | None = None,
        workers: int = 1,
    ) -> None:
        self._workers = workers
        self._to_do = Counter(kinds)
        self._seen: defaultdict[str, list[float]] = defaultdict(list, known or {})

    def finish(self, kind: str, seconds: float) -> None:
        """A piece is done."""
        self._to_do[kind] -= 1
        self._seen[kind].append(seconds)

    def left(self, kind: str | None = None, share: float = 0.0, seconds: float = 0.0) -> float:
        """Seconds left, with one piece under way; 0 while nothing is known.

        Args:
            kind: Of the piece under way.
            share: How much of it is done, in [0, 1].
            seconds: Since it began.
        """
        seen = {name: mean(values) for name, values in self._seen.items() if values}
        if kind is not None and kind not in seen and share > 0:
            seen[kind] = seconds / share
        if not seen:
            return 0.0
        typical = mean(seen.values())
        total = sum(count * seen.get(name, typical) for name, count in self._to_do.items())
        if kind is not None:
            expected = seen.get(kind, typical)
            total -= min(max(share * expected, seconds), expected)
        return max(total, 0.0) / self._workers
