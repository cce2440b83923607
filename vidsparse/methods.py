"""The named methods of the literature, and ours, as compositions of the same parts."""

from __future__ import annotations

from vidsparse.policies.choice import Alternative, Alternatives
from vidsparse.policies.choosing import ChooseBy
from vidsparse.policies.compensation import Centroid, Levels, Rescale, Residual
from vidsparse.policies.coreset import Coreset
from vidsparse.policies.correction import Delta, Gain, Row
from vidsparse.policies.deviation import Deviation
from vidsparse.policies.exact import Antidiagonal, Exact
from vidsparse.policies.geometric import Axis, Band, Disc, First, FrameBand, Neighbourhood, Slab
from vidsparse.policies.importance import Importance
from vidsparse.policies.merged import Merged
from vidsparse.policies.natten import Natten
from vidsparse.policies.observed import Observed, Sweep
from vidsparse.policies.orders import (
    AXES,
    Axes,
    Checkerboard,
    Chunks,
    Hilbert,
    Raster,
    Residues,
    Tile,
)
from vidsparse.policies.peak import Peak
from vidsparse.policies.percentile import Percentile
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled, SubBlock
from vidsparse.policies.pruned import Kept
from vidsparse.policies.radial import Radial
from vidsparse.policies.random import Random
from vidsparse.policies.ranked import Ranked
from vidsparse.policies.refined import Refined
from vidsparse.policies.rows import Rounding, Rows
from vidsparse.policies.sampled_p import SampledP
from vidsparse.policies.scope import Scope
from vidsparse.policies.selectors import Budget, Selector, Threshold, TopP
from vidsparse.policies.semantic import Remembered, Semantic, Start
from vidsparse.policies.strided_peak import StridedPeak
from vidsparse.policies.stripes import Stripes
from vidsparse.policies.token_masks import Masks
from vidsparse.policies.tokens import Tokens
from vidsparse.policies.tolerance import Tolerance
from vidsparse.policies.value_aware import Routing, ValueAware
from vidsparse.policies.vertical_slash import VerticalSlash
from vidsparse.policies.window import Window
from vidsparse.preset import Preset
from vidsparse.schedule import Schedule

# what the ladder's rungs add: 1 dB at a mean density of .35, 2.5 at .25, 2 to 3 at .15
CORRECTED = Delta(exact_every=128, exact_at=Row.MIDDLE, exact_gain=Gain.AGREED)


def _boxes(mean_density: float) -> Policy:
    return Policy(
        order=Tile(),
        estimator=ValueAware(),
        selector=Budget(),
        correction=CORRECTED,
        mean_density=mean_density,
    )


def _dense_until(share: float, layers: int = 0, replan: int = 1) -> Schedule:
    """A switch, as papers have it: dense until then and in the first layers, then all sparse."""
    return Schedule(warmup=share, ramp_until=share, dense_layers=layers, replan=replan)


def _clusters(selector: Selector, mean_density: float | None = None) -> Policy:
    return Policy(
        order=Semantic(
            q_clusters=None,
            kv_clusters=None,
            start=Start.TILES,
            first_iterations=5,
            iterations=4,
            fill_tiles=True,
        ),
        estimator=Routing(),
        selector=selector,
        compensation=Centroid(),
        correction=CORRECTED,
        mean_density=mean_density,
    )


NOTHING = 1e-9  # a density that leaves what is always kept
NEVER = 10_000  # steps until a plan is made anew: no run is as long


METHODS: tuple[Preset, ...] = (
    Preset(
        name="quality",
        summary="The ladder's first rung: semantic at a third of the attention",
        source="ours, as semantic",
        policy=_clusters(Budget(scope=Scope.HEAD), 0.35),
        schedule=Schedule(replan=4),
    ),
    Preset(
        name="balanced",
        summary="The default: blocks by what skipping them would cost, one budget a layer",
        source="ours: sub-block mass x distance of values, in boxes",
        policy=_boxes(0.35),
    ),
    Preset(
        name="fast",
        summary="The ladder's third rung: balanced at a quarter of the attention",
        source="ours, as balanced",
        policy=_boxes(0.25),
        schedule=Schedule(ramp_until=0.2),
    ),
    Preset(
        name="turbo",
        summary="The ladder's last rung, to look around: draft at a seventh of the attention",
        source="ours: the draft of DraftAttention's idea, which errs least where little is kept",
        policy=Policy(estimator=Pooled(), correction=CORRECTED, mean_density=0.15),
        schedule=Schedule(ramp_until=0.1),
    ),
    Preset(
        name="auto",
        summary="The clusters of semantic at the least density whose measured error is tolerable",
        source="ours",
        policy=_clusters(Tolerance(tolerance=0.05)),
        schedule=Schedule(replan=4),
    ),
    Preset(
        name="semantic",
        summary="Clusters as blocks; means stand in for those where that errs least",
        source="ours: the clusters of SVG2, the stand-ins of SVG-EAR, one budget a head",
        policy=_clusters(Budget(scope=Scope.HEAD), 0.25),
        schedule=Schedule(ramp_until=0.2, replan=4),
    ),
    Preset(
        name="draft",
        summary="Attention between block means picks the same number of key blocks in every row",
        source="ours, after DraftAttention, arXiv 2505.14708",
        policy=Policy(estimator=Pooled(), density=0.18),
    ),
    Preset(
        name="draft-attention",
        summary="Attention between windows of 8 x 16; the best share of each head's whole map",
        source="DraftAttention, arXiv 2505.14708, as published",
        policy=Policy(
            order=Tile(tile_frames=1, tile_height=8, tile_width=16),
            estimator=Pooled(),
            selector=Percentile(),
            density=0.25,
            block=128,
        ),
        schedule=_dense_until(0.3, layers=1),
    ),
    Preset(
        name="radial",
        summary="A static mask whose bands narrow with distance in time",
        source="Radial Attention, arXiv 2506.19852",
        policy=Policy(estimator=Radial(), selector=Threshold(), block=128),
    ),
    Preset(
        name="sta",
        summary="A window of whole tiles, or a slab of them, whichever errs least in each head",
        source="Sliding Tile Attention, arXiv 2502.04507",
        policy=Policy(
            order=Tile(tile_frames=4, tile_height=4, tile_width=4),
            estimator=Neighbourhood(unit_frames=4, unit_height=4, unit_width=4),
            selector=Threshold(),
            density=0.2,
            alternatives=Alternatives(
                candidates=tuple(
                    Alternative(
                        order=Tile(tile_frames=4, tile_height=4, tile_width=4),
                        estimator=Slab(axis=axis, unit_frames=4, unit_height=4, unit_width=4),
                    )
                    for axis in Axis
                ),
                names=("window", *(f"slab-{axis}" for axis in Axis)),
            ),
        ),
    ),
    Preset(
        name="svg",
        summary="A band in time or in space, whichever errs less on each head's sampled rows",
        source="Sparse VideoGen, arXiv 2502.01776",
        policy=Policy(
            estimator=Band(),
            selector=Threshold(),
            density=0.25,
            alternatives=Alternatives(
                candidates=(Alternative(order=Axes(axes="hwf"), estimator=Band()),),
                names=("fhw", "hwf"),
                choose_every=0,  # the paper's choice at every step is worse here, and costs more
            ),
        ),
        schedule=_dense_until(0.1, layers=1),
    ),
    Preset(
        name="svg2",
        summary="Clusters of queries and of keys; each query cluster keeps the likeliest mass",
        source="Sparse VideoGen 2, arXiv 2505.18875",
        policy=Policy(
            order=Semantic(remembered=Remembered.CENTROIDS, while_dense=True),
            estimator=Pooled(),
            selector=TopP(p=0.9),
            floor=0.1,
        ),
        schedule=_dense_until(0.3, layers=1),
    ),
    Preset(
        name="svg2-ear",
        summary="The clusters of svg2; means stand in for the clusters where that errs least",
        source="SVG-EAR",
        policy=Policy(
            order=Semantic(q_clusters=300, kv_clusters=1000),
            estimator=Routing(),
            selector=TopP(p=0.85, scope=Scope.HEAD),
            compensation=Centroid(),
        ),
    ),
    Preset(
        name="xattention",
        summary="A strided sample of the scores of every block, kept up to a share of the mass",
        source="XAttention, arXiv 2503.16428",
        policy=Policy(estimator=Antidiagonal(), selector=TopP(p=0.9, scope=Scope.HEAD), block=128),
    ),
    Preset(
        name="adaspa",
        summary="Exact block mass, searched twice a run; heads in three classes by what they keep",
        source="AdaSpa, arXiv 2502.21079, as published",
        policy=Policy(
            estimator=Exact(cached_lse=True), selector=Rows(classes=True), density=0.2, block=64
        ),
        schedule=_dense_until(0.2, replan=20),  # at steps 10 and 30 of 50
    ),
    Preset(
        name="sparsed",
        summary="Exact block mass, searched once, at the first step that is not dense",
        source="SparseD, arXiv 2509.24014, as published",
        policy=Policy(
            estimator=Exact(), selector=Rows(rounding=Rounding.BEYOND), density=0.3, block=128
        ),
        schedule=_dense_until(0.2, replan=NEVER),
    ),
    Preset(
        name="lite",
        summary="Skips the blocks that the kernel saw to matter little, and looks again in turn",
        source="ours, after LiteAttention, arXiv 2511.11062, with re-opening",
        policy=Policy(estimator=Observed(), selector=Threshold(), rotate=0.01, block=128),
    ),
    Preset(
        name="lite-attention",
        summary="Drops blocks the kernel saw to matter little, for the rest of the run",
        source="LiteAttention, arXiv 2511.11062, as published",
        policy=Policy(
            estimator=Observed(margin=-10.0, sweep=Sweep.ALTERNATE),
            selector=Threshold(),
            block=128,
        ),
        schedule=_dense_until(0.0),
    ),
    Preset(
        name="paro",
        summary="Each head nests frame, row and column as makes its map blocky, once a generation",
        source="PAROAttention, arXiv 2506.16054",
        policy=Policy(
            estimator=Pooled(),
            selector=Budget(scope=Scope.HEAD),
            density=0.5,
            alternatives=Alternatives(
                candidates=tuple(
                    Alternative(order=Axes(axes=axes), estimator=Pooled()) for axes in AXES[1:]
                ),
                names=AXES,
                choose_by=ChooseBy.BLOCKINESS,
                choose_every=0,
            ),
            block=64,
        ),
        schedule=_dense_until(0.0),
    ),
    Preset(
        name="rectified",
        summary="A narrow draft along a Hilbert curve, corrected for the mass it leaves out",
        source="Rectified SpaAttn",
        policy=Policy(
            order=Hilbert(),
            estimator=Pooled(),
            selector=TopP(p=0.3),
            floor=0.2,
            # no anchor: on a curve nearly every block holds some token of the first frame
            compensation=Rescale(),
            block=128,
        ),
    ),
    Preset(
        name="vmoba",
        summary="Boxes in time, in the plane and in both, by layer; each token picks its own",
        source="VMoBA, arXiv 2506.23858, as published",
        policy=Policy(order=Chunks(), estimator=Pooled(), selector=Tokens()),
        schedule=_dense_until(0.24),
    ),
    Preset(
        name="twilight",
        summary="Half of the blocks by a draft, of these the likeliest by scores of 4-bit keys",
        source="Twilight, arXiv 2502.02770",
        policy=Policy(estimator=Pooled(), selector=Refined(p=0.85)),
        schedule=_dense_until(0.0, layers=2),
    ),
    Preset(
        name="gna",
        summary="A window of tokens around each query, shared by a stride of them",
        source="GNA of NATTEN, arXiv 2504.16922, as published",
        policy=Policy(
            order=Residues(),
            estimator=Natten(masks=Masks.TOKEN),
            selector=Threshold(),
            block=128,
        ),
        schedule=_dense_until(0.24),  # of STA at the same window; GNA's own is not known
    ),
    Preset(
        name="clear",
        summary="A circle around every query, for images",
        source="CLEAR, arXiv 2412.16112",
        policy=Policy(
            order=Tile(tile_frames=1, tile_height=8, tile_width=8),
            estimator=Disc(masks=Masks.TOKEN),
            selector=Threshold(),
        ),
    ),
    Preset(
        name="sparse-vdit",
        summary="Each head takes a diagonal, many, stripes, all or nothing, by error and cost",
        source="Sparse-vDiT, arXiv 2506.03065, as published",
        policy=Policy(
            estimator=Band(),
            selector=Threshold(),
            density=0.25,
            alternatives=Alternatives(
                candidates=(
                    # many diagonals, a band around each frame's own, are one with all frames of a
                    # place side by side, where they fill blocks better
                    Alternative(order=Axes(axes="hwf"), estimator=Band()),
                    Alternative(order=Raster(), estimator=Stripes()),
                    Alternative(order=Raster(), estimator=Band(), density=1.0),
                    Alternative(order=Raster(), estimator=Band(), density=NOTHING, silent=True),
                ),
                names=("diagonal", "multi-diagonal", "stripe", "full", "skip"),
                choose_by=ChooseBy.LOSS,
                choose_every=0,
            ),
        ),
        schedule=_dense_until(0.0),
    ),
    Preset(
        name="rainfusion",
        summary="Each head is found to be near in time, else near in space, else textural",
        source="RainFusion, arXiv 2505.21036, as published",
        policy=Policy(
            order=Axes(axes="hwf"),
            estimator=Band(),
            selector=Threshold(),
            density=0.5,
            alternatives=Alternatives(
                candidates=(
                    Alternative(order=Raster(), estimator=Band()),
                    Alternative(order=Checkerboard(), estimator=First()),
                ),
                names=("temporal", "spatial", "textural"),
                choose_by=ChooseBy.RECALL,
                choose_every=0,
            ),
        ),
        schedule=_dense_until(0.1),
    ),
    Preset(
        name="re-ttention",
        summary="3% of each frame around the same place, plus what that lacked against dense",
        source="Re-ttention, arXiv 2505.22918, as published",
        policy=Policy(
            order=Axes(axes="hwf"),
            estimator=FrameBand(),
            selector=Threshold(),
            compensation=Residual(fades=False),
            block=64,
        ),
        schedule=_dense_until(0.3, replan=5),
    ),
    Preset(
        name="psa",
        summary="The best blocks exactly, the next ones through means of 2 and of 8 tokens",
        source="Pyramid Sparse Attention, arXiv 2512.04025, as published",
        policy=Policy(
            order=Hilbert(),
            estimator=Peak(),
            selector=Ranked(),
            density=0.1,
            compensation=Levels(level2=0.05, level8=0.2),
            block=128,
        ),
        schedule=_dense_until(0.3),
    ),
    Preset(
        name="delta",
        summary="A window of neighbours; what every 64th row lacks of dense is added around it",
        source="Delta Attention, arXiv 2505.11254",
        policy=Policy(estimator=Window(), selector=Threshold(), correction=Delta()),
    ),
    Preset(
        name="pbs",
        summary="Keys in the order of their importance within segments; a draft up to its share",
        source="PBS-Attn, arXiv 2510.21270",
        policy=Policy(order=Importance(), estimator=Pooled(), selector=TopP(p=0.9), block=128),
    ),
    Preset(
        name="proxyattn",
        summary="Mean heads score blocks by their strongest pair for all; each head has its budget",
        source="ProxyAttn, arXiv 2509.24745",
        policy=Policy(
            estimator=StridedPeak(), selector=SampledP(p=0.9), scoring_heads=4, block=128
        ),
    ),
    Preset(
        name="minference",
        summary="The columns and the diagonals that a few exact rows attend to most",
        source="MInference, arXiv 2407.02490",
        policy=Policy(estimator=VerticalSlash(), selector=Threshold(), block=64),
    ),
    Preset(
        name="mminference",
        summary="Each head takes columns and diagonals, a grid of frames or columns, or an A-shape",
        source="MMInference, arXiv 2504.16083",
        policy=Policy(
            estimator=VerticalSlash(),
            selector=Threshold(),
            block=64,
            alternatives=Alternatives(
                candidates=(
                    Alternative(order=Axes(axes="hwf"), estimator=VerticalSlash()),
                    Alternative(order=Axes(axes="wfh"), estimator=VerticalSlash()),
                    Alternative(order=Raster(), estimator=Window()),
                ),
                names=("vertical-slash", "grid-frames", "grid-columns", "a-shape"),
                choose_every=0,
            ),
        ),
    ),
    Preset(
        name="tidal",
        summary="One layer in seven selects, by exact mass, for itself and the next six",
        source="TidalDecode, arXiv 2410.05076",
        policy=Policy(estimator=Exact(rows=8), density=0.2),
        schedule=Schedule(share_layers=7),
    ),
    Preset(
        name="sparge",
        summary="A draft up to its share of the mass; blocks of unlike tokens are kept whole",
        source="SpargeAttn, arXiv 2502.18137",
        policy=Policy(estimator=Pooled(), selector=TopP(p=0.98), min_similarity=0.6, block=64),
    ),
    Preset(
        name="sol",
        summary="Blocks a standard deviation above their row's mean; means stand in for the others",
        source="Sol-Attn, arXiv 2607.24027",
        policy=Policy(
            estimator=Pooled(), selector=Deviation(tau=1.0), compensation=Centroid(), block=64
        ),
        schedule=Schedule(warmup=0.2, ramp_until=0.2),
    ),
    Preset(
        name="subblock",
        summary="Blocks by the mass between means of their quarters, equally many in every row",
        source="SGLang, pull request 34148",
        policy=Policy(estimator=SubBlock(parts=4), density=0.25, block=64),
        schedule=Schedule(warmup=0.2, ramp_until=0.2),
        min_tokens=4096,
    ),
    Preset(
        name="coreset",
        summary="Half of the tokens of small boxes attend to one another; the others copy a centre",
        source="VORTA's coreset attention, arXiv 2505.18809",
        policy=Policy(order=Coreset(), estimator=Kept(), selector=Threshold(), density=0.25),
    ),
    Preset(
        name="vorta",
        summary="Each head takes a window of tiles, half of the tokens for all, or everything",
        source="VORTA, arXiv 2505.18809, routed by measured error",
        policy=Policy(
            order=Tile(tile_frames=6, tile_height=8, tile_width=8),
            estimator=Neighbourhood(
                window_frames=18,
                window_height=24,
                window_width=24,
                unit_frames=6,
                unit_height=8,
                unit_width=8,
            ),
            selector=Threshold(),
            alternatives=Alternatives(
                candidates=(
                    Alternative(order=Coreset(), estimator=Kept(), density=0.25),
                    Alternative(order=Raster(), estimator=Band(), density=1.0),
                ),
                names=("window", "coreset", "full"),
                choose_by=ChooseBy.LOSS,
                most_loss=0.5,  # that of everything: no error, at a cost_weight of .5
            ),
        ),
        schedule=_dense_until(0.0),
    ),
    Preset(
        name="vidtome",
        summary="Tokens attend through their like in their chunk of frames, or in the one before",
        source="VidToMe, arXiv 2312.10656, as published, on keys",
        policy=Policy(
            # .9 within chunks and .8 across at 21 latent frames
            order=Merged(global_share=8 / 9),
            estimator=Kept(),
            selector=Threshold(),
            density=0.06,
        ),
        schedule=_dense_until(0.0),
    ),
    Preset(
        name="freeswim",
        summary="A window as large as the training size at 480p, moved inward at the edges",
        # its branch with the whole field is no attention of one call: Session.full_field
        source="FreeSwim, arXiv 2511.14712, without its dense pass: session.full_field()",
        policy=Policy(
            order=Tile(tile_frames=16, tile_height=4),  # long as the window: its edge cuts few
            estimator=Neighbourhood(window_frames=4096, window_height=31, window_width=53),
            selector=Threshold(),
        ),
    ),
    Preset(
        name="random",
        summary="The control: random blocks, the same at every step",
        source="none; every method must beat it at the same density",
        policy=Policy(estimator=Random(), density=0.18),
    ),
)
