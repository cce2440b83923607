"""The catalogue says the same of a metric as its accumulator and its scores do."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.metrics import catalogue, registry
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.catalogue import METRICS, info
from vidsparse.metrics.scores import Scorer

WHOLE = [
    "psnr",
    "ssim",
    "ms_ssim",
    "temporal_psnr",
    "lpips_alex",
    "lpips_vgg",
    "vbench/temporal_flickering",
    "vbench/subject_consistency",
    "vbench/background_consistency",
    "vbench/aesthetic_quality",
    "judge/as_asked",
    "proxy/motion_smoothness",
    "proxy/dynamic_degree",
    "proxy/flow_difference",
    "proxy/warp_error",
    "proxy/nss_distance",
]


def test_every_metric_is_accumulated_in_its_direction():
    directions = {True: "higher", False: "lower", None: "closer to dense"}
    whole = {metric for metric in METRICS if not metric.endswith(("_pooled", "_worst_frame"))}
    assert whole == set(WHOLE)
    for metric in WHOLE:
        assert METRICS[metric].better == directions[Accumulated(metric).higher_is_better], metric


def test_a_stand_in_is_called_one_and_only_stand_ins_are():
    for metric, facts in METRICS.items():
        assert facts.id == metric
        assert metric.startswith("proxy/") == (facts.tier == "stand-in")
        assert metric.startswith("judge/") == (facts.tier == "judge")
        assert (facts.stands_in_for is not None) == (facts.tier == "stand-in")
        assert facts.caveat.endswith(".")


def test_facts_are_found_for_the_dense_runs_own_value_too():
    assert info("proxy/warp_error@dense") is METRICS["proxy/warp_error"]
    with pytest.raises(BadInputError, match="no metric 'charm': choose from psnr"):
        info("charm")


def test_a_metric_that_is_only_derived_is_not_accumulated():
    with pytest.raises(BadInputError, match="no metric 'psnr_pooled': choose from psnr"):
        Accumulated("psnr_pooled")


def test_a_new_metric_is_one_declared_function(monkeypatch, scene):
    """Its facts, its accumulator and its scores follow from the declaration."""
    monkeypatch.setattr(registry, "REGISTRY", {})

    @registry.metric(
        "mean", label="Mean", better="closer to dense", caveat="A.", alone=True, side=9
    )
    def mean(frames):
        return torch.tensor([frame.mean() for frame in frames])

    found = registry.REGISTRY["mean"]
    monkeypatch.setitem(catalogue.ALL, "mean", found)
    monkeypatch.setitem(METRICS, "mean", found.info)
    assert info("mean@dense").label == "Mean"
    noisy = scene.noise()
    scores = Scorer().score(noisy, scene.dense)
    assert scores.values["mean"] == pytest.approx(noisy.mean())
    assert scores.values["mean@dense"] == pytest.approx(scene.dense.mean())
    assert len(scores.curves["mean"]) == len(noisy)
    assert "mean" not in Scorer().score(noisy[:, :8], scene.dense[:, :8]).values
    gathered = Accumulated("mean")
    gathered.update(noisy)
    assert gathered.compute().item() == pytest.approx(noisy.mean())
