"""What a session will remember, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

from vidsparse.grid import TokenGrid
from vidsparse.policies.choice import alike
from vidsparse.policies.policy import Policy
from vidsparse.preset import Preset


class StateBytes(NamedTuple):
    """What one layer remembers between calls, in bytes.

    Attributes:
        own: Of each guidance branch by itself.
        common: Of all branches together.
    """

    own: int
    common: int

    def of_run(self, layers: int, branches: int = 2) -> int:
        """Bytes of all layers and guidance branches."""
        return layers * (branches * self.own + self.common)


def layer_state_bytes(
    preset: Preset,
    grid: TokenGrid,
    heads: int,
    head_dim: int,
    *,
    itemsize: int = 2,
    batch: int = 1,
    on_host: bool = False,
) -> StateBytes:
    """Bytes that one layer remembers, on the device or in host memory.

    On the device: observed blocks, a bit each; a few members of each cluster; a choice, a byte a
    head. On the host, where it waits for the next call: a plan, a bit a block; the labels of
    clustered tokens; centroids, where they are kept; the residual of every token. Static
    plans, which layers share, are not in it. With ``share_layers``, what is common is so of
    neighbouring layers too.

    Args:
        preset: What runs.
        grid: The tokens.
        heads: Of the layer.
        head_dim: Of a head.
        itemsize: Bytes of a number of the model's dtype, for the residual.
        batch: Entries of a batch, such as guidance branches that run as one.
        on_host: What waits in host memory, instead of what is on the device.

    Example:
        >>> from vidsparse.presets import PRESETS
        >>> wan_14b = TokenGrid(21, 45, 80)
        >>> layer_state_bytes(PRESETS["lite"], wan_14b, heads=40, head_dim=128).of_run(40)
        139948800
    """
    policy, order, schedule = preset.policy, preset.policy.order, preset.schedule
    remembers = schedule.remembers
    block = preset.block_on("cuda", grid.tokens, head_dim)
    number = -(-grid.tokens // block)
    own = common = mask = labels = 0
    if on_host:
        own += policy.compensation.state_bytes(grid, head_dim, itemsize)
        if remembers and policy.can_reuse_plans and not policy.static:
            rows, columns = order.block_counts(grid, block, policy.key_block)
            mask = rows * -(-columns // 8)
        orders = {each.order for each in policy.candidates}
        labels = sum(each.label_bytes(grid, block) for each in orders) * batch if remembers else 0
        common += order.parked_bytes(grid, block, head_dim) + policy.estimator.parked_bytes(grid)
    else:
        own += policy.estimator.state_bytes(number)
        common += order.state_bytes(grid, block)
        common += policy.alternatives is not None
    own, common = own * heads * batch, common * heads * batch
    same = all(each.order.same_in_heads for each in policy.candidates)
    common += labels if same else labels * heads
    common += mask if _one_mask_for_all(policy) else mask * heads * batch
    return StateBytes(own, common) if schedule.share_branches else StateBytes(own + common, 0)


def _one_mask_for_all(policy: Policy) -> bool:
    """Whether heads differ in nothing but their order."""
    return alike(policy.candidates) and not policy.estimator.needs_data and not policy.rotate
