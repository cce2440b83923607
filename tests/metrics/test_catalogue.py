"""The catalogue says the same of a metric as its class and its scores do."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics import (
    flicker,
    judge,
    learned,
    lpips,
    motion,
    ms_ssim,
    natural,
    psnr,
    ssim,
    warp,
)
from vidsparse.metrics.catalogue import METRICS, info
from vidsparse.metrics.temporal import TemporalPSNR

CLASSES = {
    "psnr": psnr.PSNR,
    "ssim": ssim.SSIM,
    "ms_ssim": ms_ssim.MSSSIM,
    "temporal_psnr": TemporalPSNR,
    "lpips_alex": lpips.LPIPS,
    "lpips_vgg": lpips.LPIPS,
    "vbench/temporal_flickering": flicker.TemporalFlickering,
    "vbench/subject_consistency": learned.SubjectConsistency,
    "vbench/background_consistency": learned.BackgroundConsistency,
    "vbench/aesthetic_quality": learned.AestheticQuality,
    "judge/as_asked": judge.AsAsked,
    "proxy/motion_smoothness": motion.MotionSmoothness,
    "proxy/dynamic_degree": motion.DynamicDegree,
    "proxy/flow_difference": warp.FlowDifference,
    "proxy/warp_error": warp.WarpError,
    "proxy/nss_distance": natural.NSSDistance,
}


def test_every_metric_has_a_class_of_the_same_direction():
    directions = {True: "higher", False: "lower", None: "closer to dense"}
    whole = {metric for metric in METRICS if not metric.endswith(("_pooled", "_worst_frame"))}
    assert whole == CLASSES.keys()
    for metric, each in CLASSES.items():
        assert METRICS[metric].better == directions[each.higher_is_better], metric


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
