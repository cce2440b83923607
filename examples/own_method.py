"""A method of one's own, in a file of one's own: beside random blocks and beside the default.

    vidsparse compare --preset examples/own_method.py:bound,random,balanced -o own_method

``python examples/own_method.py`` does the same with ``--set mean_density=0.35``, so that all three
compute the same share of a run's attention, and with whatever options follow. A method that does
not beat ``random`` has found nothing.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse import Preset
from vidsparse.cli import run
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Bound(Estimator):
    """The highest score that any key of a block could have, after Quest (arXiv 2406.10774).

    Of the mean query ``q`` of a block, and the least and the greatest value of each channel in a
    block of keys: ``sum over channels of max(q * least, q * greatest)``.
    """

    measure: ClassVar[Measure] = Measure.RANK  # higher is better; it claims no more

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score each block of keys for each block of queries, ``(batch, heads, M, N)``."""
        q, (_, k, _) = inputs.q_means, inputs.qkv  # (batch, heads, M or seq, head_dim)
        missing = -k.shape[2] % inputs.blocks.kv_block  # the last block may be short
        k = torch.cat([k, k[:, :, -1:].expand(-1, -1, missing, -1)], dim=2).float()
        blocks = k.unflatten(2, (-1, inputs.blocks.kv_block))
        least, greatest = blocks.amin(dim=3), blocks.amax(dim=3)
        scores = q.clamp(max=0) @ least.mT + q.clamp(min=0) @ greatest.mT
        return Estimate(scores=scores * inputs.scale)


bound = Preset(
    name="bound",
    summary="The blocks whose best key could score highest",
    source="after Quest, arXiv 2406.10774",
    policy=Policy(estimator=Bound(), mean_density=0.35),
)


def main() -> int:
    presets = f"{__file__}:bound,random,balanced"
    options = ["--set", "mean_density=0.35", "-o", "own_method", *sys.argv[1:]]
    return run(["compare", "--preset", presets, *options])


if __name__ == "__main__":
    sys.exit(main())
