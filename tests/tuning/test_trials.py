"""Trials of presets that a run turns down."""

from types import SimpleNamespace
from typing import Any

import pytest

from vidsparse.errors import BadInputError, OutOfReachError
from vidsparse.presets import PRESETS
from vidsparse.tuning.search import Measure
from vidsparse.tuning.trials import Trials


@pytest.mark.parametrize("error", [OutOfReachError, BadInputError])
def test_a_mean_density_that_only_the_run_knows_to_be_out_of_reach_is_no_trial(monkeypatch, error):
    def turned_down(*_):
        raise error("with what plans keep besides, the least is 0.3")

    monkeypatch.setattr(Trials, "_clip", turned_down)
    case = SimpleNamespace(request=SimpleNamespace(steps=20))
    job = SimpleNamespace(checkpoint=SimpleNamespace(layers=8))
    finished: Any = SimpleNamespace(spec=SimpleNamespace(cases=[case], job=job))
    board: Any = None
    trials = Trials(finished=finished, pipe=None, error=Measure.PSNR, board=board)
    preset = PRESETS["semantic"].override({"mean_density": 0.3})
    if error is OutOfReachError:
        assert trials(preset) is None
    else:
        with pytest.raises(BadInputError, match=r"0\.3"):
            trials(preset)
    assert trials(PRESETS["semantic"].override({"mean_density": 0.01})) is None
