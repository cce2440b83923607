"""Settings that a method's authors publish for a model, where they differ from model to model.

A preset takes those that nobody has told it otherwise. Dense steps are shares of the run here, as
in the schedule: 12 of 50 steps is a switch at 0.24. What a preset's parts cannot do as published,
such as a warm-up that begins anew with the second expert, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidsparse.pipelines.model import SHIPPED
from vidsparse.policies.parts import PARTS
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS

T2V_14B, I2V_14B, T2V_1_3B = "Wan2.1-T2V-14B", "Wan2.1-I2V-14B", "Wan2.1-T2V-1.3B"
T2V_A14B, I2V_A14B, TI2V_5B = "Wan2.2-T2V-A14B", "Wan2.2-I2V-A14B", "Wan2.2-TI2V-5B"
HUNYUAN, COSMOS = "HunyuanVideo", "Cosmos-1.0-Diffusion-14B-Text2World"
COG, COG_15 = "CogVideoX-5b", "CogVideoX1.5-5B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row.

    Attributes:
        preset: Of the method.
        releases: Of models, by their names in the model table.
        settings: Of the preset's parameters.
        source: A repository, or a paper.
    """

    preset: str
    releases: tuple[str, ...]
    settings: Mapping[str, Any]
    source: str

    def describe(self) -> str:
        """The settings for a person."""
        return describe(self.settings)


def describe(settings: Mapping[str, Any]) -> str:
    """Settings for a person."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )


def _dense(steps: int, of: int) -> dict[str, float]:
    """The first so many steps of a run dense, and all others at full sparsity."""
    return {"warmup": steps / of, "ramp_until": steps / of}


def _clusters(queries: int, keys: int) -> dict[str, int]:
    return {"q_clusters": queries, "kv_clusters": keys}


_ONE_LAYER = {"dense_layers": 1}  # 3 % of 36, of 40 and of 60, rounded down as their code does
_RADIAL, _SVG = "mit-han-lab/radial-attention", "svg-project/Sparse-VideoGen"
_RECTIFIED, _PSA = "BienLuky/Rectified-SpaAttn", "ziplab/Pyramid-Sparse-Attention"

_PSA_MASS = f"{_PSA}, shares of importance"


def _by_mass(p: float, **levels: float) -> dict[str, Any]:
    """PSA's blocks by cumulative importance; other levels than these are not read."""
    none = {"level2": 0.0, "level4": 0.0, "level8": 0.0}
    return {"p": p, "floor": 0.06, **none, **levels, **_dense(15, 50)}


PUBLISHED: tuple[Published, ...] = (
    Published(
        preset="radial",
        releases=(T2V_14B,),
        settings={"decay": 0.2, **_ONE_LAYER, **_dense(12, 50)},
        source=f"{_RADIAL}, 69 frames",
    ),
    Published(
        preset="radial",
        releases=(T2V_A14B,),
        settings={"decay": 0.8, **_ONE_LAYER, **_dense(11, 40)},
        source=f"{_RADIAL}, 77 frames",
    ),
    Published(
        preset="radial",
        releases=(HUNYUAN,),
        settings={"decay": 0.95, "first_frame": False, "dense_layers": 0, **_dense(12, 50)},
        source=f"{_RADIAL}, 117 frames",
    ),
    Published(
        preset="svg",
        releases=(T2V_14B,),
        settings={"density": 0.3, "sink": True, **_ONE_LAYER, **_dense(10, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg",
        releases=(I2V_14B,),
        settings={"density": 0.3, "sink": True, **_ONE_LAYER, **_dense(14, 40)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg",
        releases=(HUNYUAN,),
        settings={"density": 0.25, **_ONE_LAYER, **_dense(5, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg",
        releases=(COSMOS,),
        settings={"density": 0.25, **_ONE_LAYER, **_dense(10, 35)},
        source=_SVG,
    ),
    Published(
        preset="svg2",
        releases=(T2V_14B,),
        settings={**_clusters(300, 1000), **_ONE_LAYER, **_dense(10, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2",
        releases=(I2V_14B,),
        settings={**_clusters(300, 1000), **_ONE_LAYER, **_dense(14, 40)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2",
        releases=(HUNYUAN,),
        settings={**_clusters(400, 1000), **_ONE_LAYER, **_dense(5, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2",
        releases=(COSMOS,),
        settings={**_clusters(400, 1000), **_ONE_LAYER, **_dense(10, 35)},
        source=_SVG,
    ),
    Published(
        preset="svg2-ear",
        releases=(T2V_14B,),
        settings={**_clusters(300, 1000), "p": 0.9, **_ONE_LAYER, **_dense(10, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2-ear",
        releases=(I2V_14B,),
        settings={**_clusters(300, 1000), "p": 0.9, **_ONE_LAYER, **_dense(14, 40)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2-ear",
        releases=(HUNYUAN,),
        settings={**_clusters(400, 1000), "p": 0.9, **_ONE_LAYER, **_dense(5, 50)},
        source=f"{_SVG}, 720p",
    ),
    Published(
        preset="svg2-ear",
        releases=(T2V_A14B, I2V_A14B),
        settings={**_clusters(300, 1000), "p": 0.85, **_ONE_LAYER, **_dense(10, 50)},
        source="the paper of SVG-EAR",
    ),
    Published(  # t > 925, of its 50 steps at shift 5 the first 15
        preset="draft",
        releases=(T2V_14B,),
        settings={"density": 0.25, **_ONE_LAYER, **_dense(15, 50)},
        source="shawnricecake/draft-attention",
    ),
    Published(
        preset="draft",
        releases=(HUNYUAN,),
        settings={"density": 0.1, "dense_layers": 0, **_dense(0, 50)},
        source="shawnricecake/draft-attention",
    ),
    Published(
        preset="draft-attention",
        releases=(T2V_14B,),
        settings={"density": 0.25, **_ONE_LAYER, **_dense(15, 50)},
        source="shawnricecake/draft-attention",
    ),
    Published(
        preset="draft-attention",
        releases=(HUNYUAN,),
        settings={"density": 0.1, "dense_layers": 0, **_dense(0, 50)},
        source="shawnricecake/draft-attention",
    ),
    Published(
        preset="rectified",
        releases=(T2V_14B,),
        settings={"p": 0.3, "floor": 0.25, "dense_layers": 2, **_dense(5, 50)},
        source=_RECTIFIED,
    ),
    Published(
        preset="rectified",
        releases=(I2V_14B,),
        settings={"p": 0.3, "floor": 0.25, "dense_layers": 2, **_dense(0, 50)},
        source=_RECTIFIED,
    ),
    Published(
        preset="rectified",
        releases=(HUNYUAN,),
        settings={"p": 0.3, "floor": 0.2, "dense_layers": 0, **_dense(0, 50)},
        source=_RECTIFIED,
    ),
    Published(
        preset="sta",
        releases=(HUNYUAN,),
        settings={"density": 0.42, **_dense(12, 50)},
        source="Sliding Tile Attention, arXiv 2502.04507, without training",
    ),
    Published(
        preset="gna",
        releases=(HUNYUAN,),
        settings={
            "window_frames": 18,
            "window_height": 24,
            "window_width": 24,
            "stride_frames": 16,
            "stride_height": 8,
            "stride_width": 8,
        },
        source="GNA, arXiv 2504.16922, 30 x 48 x 80 tokens",
    ),
    Published(
        preset="adaspa",
        releases=(HUNYUAN, COG_15),
        settings={"density": 0.2, **_dense(10, 50)},
        source="AdaSpa, arXiv 2502.21079",
    ),
    Published(
        preset="xattention",
        releases=(HUNYUAN,),
        settings=_dense(5, 50),
        source="XAttention, arXiv 2503.16428",
    ),
    Published(
        preset="vmoba",
        releases=(T2V_1_3B,),
        settings={"p": 0.25, "dense_layers": 0, **_dense(12, 50)},
        source="VMoBA, arXiv 2506.23858, without training",
    ),
    Published(
        preset="rainfusion",
        releases=(HUNYUAN, COG),
        settings={"density": 0.5, **_dense(5, 50)},
        source="RainFusion, arXiv 2505.21036",
    ),
    Published(
        preset="psa",
        releases=(T2V_1_3B,),
        settings={"density": 0.05, "level2": 0.05, "level4": 0.05, "level8": 0.1, **_dense(15, 50)},
        source=f"{_PSA}, shares by rank",
    ),
    Published(
        preset="psa",
        releases=(COG, COG_15),
        settings={"density": 0.1, "level2": 0.05, "level8": 0.2, **_dense(15, 50)},
        source=_PSA,
    ),
    Published(
        preset="psa",
        releases=(T2V_14B,),
        settings=_by_mass(0.4, level2=0.1, level4=0.1, level8=0.2),
        source=_PSA_MASS,
    ),
    Published(
        preset="psa",
        releases=(T2V_A14B,),
        settings=_by_mass(0.5, level2=0.1, level8=0.2),
        source=_PSA_MASS,
    ),
    Published(
        preset="psa",
        releases=(TI2V_5B,),
        settings=_by_mass(0.6, level2=0.1, level8=0.1),
        source=_PSA_MASS,
    ),
)

AMOUNT = frozenset(
    {"density", "mean_density", "budgets", "p", "tolerance", "decay", "floor"}
    | {"level2", "level4", "level8"}
)
LINKED = (AMOUNT, frozenset({"warmup", "ramp_until"}), frozenset({"q_clusters", "kv_clusters"}))
OF_A_RUN = frozenset({"warmup", "ramp_until", "dense_layers"})  # what mean_density has to pay for


def published_for(preset: str) -> list[Published]:
    """The rows of a preset."""
    return [row for row in PUBLISHED if row.preset == preset]


def apply(preset: Preset, release: str | None) -> tuple[Preset, str | None]:
    """A preset with what is published of its method for a model, and a sentence that says so.

    On the shipped pipeline, which is there to try, it is sparse where no time is gained too.

    Parameters that somebody has told the preset stay, and so do those that say the same thing with
    them: a density leaves out a published ``decay``, a ``warmup`` the end of the published one, a
    mean density the published schedule. Doing it twice changes nothing more.

    Args:
        preset: As it was asked for.
        release: Of the model; None where it is none of which anything is published.

    Returns:
        The preset as it is, and None, where nothing is published, or nothing was left to be taken.

    Example:
        >>> from vidsparse.presets import PRESETS
        >>> found, said = apply(PRESETS["radial"].override({"warmup": 0.1}), "Wan2.2-T2V-A14B")
        >>> found.parameters()["decay"], found.schedule.warmup, found.schedule.ramp_until
        (0.8, 0.1, 0.3)
        >>> said.partition(", as")[0]
        'radial on Wan2.2-T2V-A14B runs with decay=0.8, dense_layers=1'
    """
    if release == SHIPPED and preset.min_tokens is None:
        return dataclasses.replace(preset, min_tokens=preset.least_tokens), None
    row = next((r for r in published_for(preset.name) if release in r.releases), None)
    if row is None or not _of_own_parts(preset):
        return preset, None
    left_out = _left_out(preset, row)
    settings = {name: value for name, value in row.settings.items() if name not in left_out}
    if not settings:
        return preset, None
    found = dataclasses.replace(preset.override(settings), told=preset.told)
    said = (
        f"{preset.name} on {release} runs with {describe(settings)}, as its authors publish "
        f"({row.source})"
    )
    return found, said


def _of_own_parts(preset: Preset) -> bool:
    """Whether a preset is still the method that its name says."""
    parts = zip(preset.policy.parts, PRESETS[preset.name].policy.parts, strict=True)
    return not preset.told & PARTS.keys() and all(type(a) is type(b) for a, b in parts)


def _left_out(preset: Preset, row: Published) -> set[str]:
    """What is not the row's to say: parameters that are told, or others than the preset's own."""
    usual = PRESETS[preset.name].parameters()
    own = set(preset.told)
    for name, value in preset.parameters().items():
        if name == "density" and value is None:
            continue  # something else says how much: if not the row, then that is told
        if value not in (usual.get(name, value), row.settings.get(name, usual.get(name, value))):
            own.add(name)
    if "mean_density" in own:
        own |= OF_A_RUN
    for linked in LINKED:
        own |= linked if linked & own else set()
    return own
