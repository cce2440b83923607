"""Any metric over many clips, as torchmetrics has it: gathered over processes, reset, averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vidsparse.metrics.catalogue import find_metric
from vidsparse.metrics.clips import finite_mean


class Accumulated(Metric):
    """A metric accumulated over clips; ``compute()`` is the mean over frames, then over clips.

    What is infinite is left out of a mean, unless there is nothing else. Inside ``with
    metric.sync_context():`` the other values cover all processes too, as ``compute()`` always does.

    Attributes:
        values: One float64 vector per clip: of its frames, of its pairs of frames, or one number.
        lengths: How long each is.

    Args:
        metric_id: Which metric, as in results.
        given: What its function takes beside the clips, such as ``fps=12`` or ``network=...``.

    Raises:
        BadInputError: When there is no such metric.

    Example:
        >>> import numpy as np
        >>> psnr = Accumulated("psnr")
        >>> psnr.update(np.full((2, 8, 8, 3), 255, np.uint8), np.zeros((2, 8, 8, 3), np.uint8))
        >>> psnr.compute()
        tensor(0., dtype=torch.float64)
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, metric_id: str, **given: Any) -> None:
        super().__init__()
        self.metric, self.given = find_metric(metric_id), given
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("lengths", [], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which direction is better; None where closer to the dense run's own value is."""
        return {"higher": True, "lower": False}.get(self.metric.info.better)

    def update(self, *clips: Any) -> None:
        """Add one clip, ``(frames, height, width, 3)`` uint8, and what else the metric takes."""
        found = torch.as_tensor(self.metric.measure(*clips, **self.given), dtype=torch.float64)
        self.values.append(found.reshape(-1).to(self.device))
        self.lengths.append(torch.tensor([found.numel()], device=self.device))

    def compute(self) -> Tensor:
        """Return the mean over clips of each clip's mean, a float64 scalar."""
        values = self.metric.value(dim_zero_cat(self.values))
        clips = values.split(dim_zero_cat(self.lengths).tolist())
        return finite_mean(torch.stack([finite_mean(each) for each in clips]))

    def derived(self, metric_id: str) -> Tensor:
        """Return another number from the values of all clips, such as ``psnr_pooled``."""
        return self.metric.derived[metric_id].function(dim_zero_cat(self.values))

    def lowest(self) -> Tensor:
        """Return the smallest value of all clips."""
        return self.metric.value(dim_zero_cat(self.values)).min()

    def highest(self) -> Tensor:
        """Return the largest value of all clips."""
        return self.metric.value(dim_zero_cat(self.values)).max()

    def identical(self) -> int:
        """Return how many values of all clips are infinite, the frame being the reference's."""
        return int(self.metric.value(dim_zero_cat(self.values)).isinf().sum())
