"""What is said of a tuned preset."""

from types import SimpleNamespace
from typing import Any

import pytest

from vidsparse.presets import PRESETS
from vidsparse.tuning.search import Measure, Target, Trial
from vidsparse.tuning.trials import Clip
from vidsparse.tuning.verdict import verdict


@pytest.mark.parametrize(
    ("of_prompts", "said"),
    [
        ([31.0], "; that is of one prompt alone: others can be several dB off, and three or more"),
        ([30.0, 32.0], "; that is of 2 prompts alone: others can be several dB off"),
        ([30.0, 32.0, 34.0, 36.0], "; one more prompt may have 24 to 42 dB"),
    ],
)
def test_what_is_met_on_the_prompts_is_not_promised_of_others(of_prompts, said):
    clips = [
        Clip(psnr=each, lpips=None, seconds=10.0, dense_seconds=20.0, density=0.3)
        for each in of_prompts
        for _ in range(2)
    ]
    cases = [SimpleNamespace(prompt_index=i // 2) for i in range(len(clips))]
    preset = PRESETS["balanced"]
    trials: Any = SimpleNamespace(clips={preset: clips}, cases=cases, error=Measure.PSNR)
    best = Trial(preset, -sum(of_prompts) / len(of_prompts), 10.0, 2.0, 0.3)
    found = verdict(best, Target(Measure.PSNR, 30.0), trials)
    assert found.startswith("30 dB PSNR against dense is met by balanced, mean density 0.300")
    assert said in found
