"""What a sparse call takes beside a dense one: lines through calls that were timed.

All of 75,600 tokens and 40 heads on an H200, shares of a dense call by cuDNN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vidsparse.methods import METHODS
from vidsparse.policies.block_size import WIDE
from vidsparse.policies.orders import Order
from vidsparse.policies.parts import PARTS, part_name
from vidsparse.policies.policy import Policy
from vidsparse.preset import Dense, Precision, Preset

EIGHT_BITS = {  # what rounding takes of a dense call in 16 bits, a pair of one, and all pairs
    True: (0.011, 0.68, 0.642),  # heads of 128 numbers
    False: (0.063, 0.85, 0.92),  # of 64
}
FILLED = 0.056, 1.146, 1.055  # clusters that fill tiles: share of a dense call beside planning,
# what all pairs cost, and a pair in eight bits over one of boxes
CLUSTERS = {  # others
    True: (0.050, 1.396, 1.09),  # as many as there would be blocks: tiles of queries are less full
    False: (0.035, 1.164, 1.09),  # 200 of queries
}
MORE = 0.009  # of a dense call, what clusters in eight bits have more to round
PLANNING = 0.8, 0.006  # ms, and a share of the dense call, of an order and a plan made of data
LAUNCHES = 4.7  # ms that a layer with such a call takes at least, whatever the GPU: its launches
LARGE = 128  # tokens in the blocks that the lines are of
SMALL = 0.016, 1.24  # blocks of 64: more to plan, and a pair over one in a larger block
OWN = {  # presets that decide or attend in ways of their own: as of FILLED, with all of planning
    # but its milliseconds
    "draft-attention": (0.005, 0.983),
    "sta": (0.047, 0.937),
    "svg": (0.012, 0.842),
    "svg2": (0.020, 1.053),
    "svg2-ear": (0.068, 1.207),
    "xattention": (0.035, 0.956),
    "rectified": (0.082, 0.894),
    "vmoba": (0.091, 1.344),
    "twilight": (0.238, 0.919),
    "sparse-vdit": (0.029, 0.887),
    "psa": (0.154, 0.900),
    "pbs": (0.016, 0.943),
    "proxyattn": (0.016, 0.952),
    "mminference": (0.058, 0.877),
    "tidal": (0.024, 0.921),
    "sparge": (0.037, 0.887),
    "sol": (0.012, 0.963),
    "coreset": (0.034, 0.930),
    "vorta": (0.134, 0.887),
    "vidtome": (0.047, 1.006),
}
NOT_TIMED = frozenset({"re-ttention"})  # residuals of that shape are more than it allows itself


@dataclass(frozen=True, slots=True)
class CallCost:
    """A sparse call beside a dense one: ``fixed + (start + slope * density) * dense``.

    Attributes:
        fixed: Milliseconds.
        start: Share of the dense call that passes whatever is kept.
        slope: What all pairs would cost, as a share of the dense call.
        dense: What a dense call costs within the session, as a share of one without a mask; None
            where it is the model's own.
        least: Milliseconds that a layer takes at least, with all that it does besides.
    """

    fixed: float
    start: float
    slope: float
    dense: float | None = None
    least: float = 0.0

    def share(self, density: float) -> float:
        """What a sparse call takes of a dense one's time, besides what is fixed."""
        return self.start + self.slope * density


def call_cost(preset: Preset, block: int, head_dim: int = WIDE) -> CallCost:
    """By its own line for a preset of ``OWN``; for others by the kind of plan.

    That is clusters, means that stand in, blocks of 128 or of 64, or a mask (ladder_calls_h200.json
    in benchmarks/results; of clusters ladder_calls_filled_h200.json, where they fill no tiles
    ladder_calls_rungs_h200.json and ladder_calls_clusters_h200.json). Of ``OWN``
    ladder_calls_presets_h200.json. In eight bits by low_bit_h200.json, where heads of 64 hardly
    gain.
    """
    cost = _own(preset, block) or _of_kind(preset.policy, block)
    if preset.precision is Precision.MODEL:
        return cost if preset.dense is Dense.MODEL else replace(cost, dense=1.0)
    rounding, pair, whole = EIGHT_BITS[head_dim >= WIDE]
    if preset.policy.order.makes_clusters:
        rounding, pair = rounding + MORE, pair * _of_clusters(preset.policy.order)[2]
    return CallCost(cost.fixed, cost.start + rounding, pair * cost.slope, whole, cost.least)


def untimed(preset: Preset) -> list[str]:
    """Parts whose cost is not known, as ``selector=refined``: in no preset of the usual kinds.

    Args:
        preset: What is to be predicted.

    Returns:
        None of them for what has a line of its own; of a mask of places alone what stands in for
        the rest.
    """
    policy = preset.policy
    if _line(preset) is not None:
        return []
    usual = [each for each in METHODS if each.name not in OWN and each.name not in NOT_TIMED]
    known = {type(part) for each in usual for part in each.policy.parts}
    return [
        f"{kind}={part_name(table, getattr(policy, kind))}"
        for kind, table in PARTS.items()
        if type(getattr(policy, kind)) not in known
        and (kind == "compensation" or not policy.static)
    ]


def _own(preset: Preset, block: int) -> CallCost | None:
    line = _line(preset)
    if line is None:
        return None
    start, slope = line
    if block < LARGE:
        start, slope = start + SMALL[0], slope * SMALL[1]
    return CallCost(PLANNING[0], start, slope, least=LAUNCHES)


def _line(preset: Preset) -> tuple[float, float] | None:
    """Of the preset that it is called after, or else of one that is made of the same parts."""
    kinds = _kinds(preset.policy)
    alike = [each.name for each in METHODS if _kinds(each.policy) == kinds]
    alike.sort(key=lambda name: name != preset.name)
    return OWN.get(alike[0]) if alike else None


def _kinds(policy: Policy) -> list[object]:
    """What a policy is made of, whatever its parameters; a correction costs about nothing."""
    *parts, _ = map(type, policy.parts)
    apart = policy.alternatives, policy.scoring_heads, policy.min_similarity
    return [*parts, *(each is None for each in apart)]


def _of_kind(policy: Policy, block: int) -> CallCost:
    fixed, start = PLANNING
    if policy.order.makes_clusters:
        more, slope, _ = _of_clusters(policy.order)
        return CallCost(fixed, start + more, slope, least=LAUNCHES)
    slope = 0.935
    if block < LARGE:
        slope *= SMALL[1]
        start += 0.0 if policy.static else SMALL[0]
    if policy.static:
        return CallCost(0.0, 0.0, slope)
    start += 0.033 if policy.compensation.through_means else 0.0
    return CallCost(fixed, start, slope, least=LAUNCHES)


def _of_clusters(order: Order) -> tuple[float, float, float]:
    return FILLED if order.fills_tiles else CLUSTERS[order.counts_blocks]
