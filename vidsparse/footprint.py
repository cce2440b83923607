"""What a session will remember, from shapes alone."""

from __future__ import annotations

from vidsparse.grid import TokenGrid
from vidsparse.policies.compensation import Compensation
from vidsparse.policies.observed import Observed
from vidsparse.policies.semantic import Semantic
from vidsparse.preset import Preset


def layer_state_bytes(
    preset: Preset, grid: TokenGrid, heads: int, head_dim: int, *, itemsize: int = 2, batch: int = 1
) -> int:
    """Bytes that one layer remembers between steps, for one guidance branch.

    A plan or the observed blocks are a bit a block; clusters are remembered by members; a choice is
    a byte a head. Static plans, shared by all layers, are not in it.

    Args:
        preset: What runs.
        grid: The tokens.
        heads: Of the layer.
        head_dim: Of a head.
        itemsize: Bytes of a number of the model's dtype, for the residual.
        batch: Entries of a batch, such as guidance branches that run as one.

    Example:
        >>> from vidsparse.presets import PRESETS
        >>> wan_14b = TokenGrid(21, 45, 80)
        >>> 80 * layer_state_bytes(PRESETS["lite"], wan_14b, heads=40, head_dim=128)
        139948800
    """
    policy = preset.policy
    number = -(-grid.tokens // policy.block)
    total = 0
    if preset.schedule.replan > 1 or isinstance(policy.estimator, Observed):
        total += number * -(-number // 8)
    if isinstance(policy.order, Semantic):
        total += policy.order.state_bytes(grid)
    if policy.alternatives:
        total += 1
    if policy.compensation is Compensation.RESIDUAL:
        total += number * (head_dim + 1) * itemsize
    return total * heads * batch
