"""Context parallelism on two processes: what one process makes, also where text is split apart."""

import json
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

import vidsparse
from vidsparse.presets import PRESETS
from vidsparse.stats import Stats

SPARSE: dict[str, Any] = {
    "min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.05, "ramp_until": 0.05,
}  # fmt: skip
RANKS = 2
TIMES = (0.9, 0.7, 0.5)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def wan(heads=4):
    """Video tokens alone, split within the blocks."""
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(  # type: ignore[attr-defined]
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    inputs = {"hidden_states": randn(1, 16, 4, 8, 12), "encoder_hidden_states": randn(1, 8, 16)}
    return model.eval(), inputs, 1000.0


def flux():
    """Text and image are split each by itself, so they arrive in turns."""
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(  # type: ignore[attr-defined]
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    ids = torch.zeros(10, 12, 3)
    ids[..., 1], ids[..., 2] = torch.arange(10)[:, None], torch.arange(12)
    inputs = {
        "hidden_states": randn(1, 120, 4), "encoder_hidden_states": randn(1, 8, 32),
        "pooled_projections": randn(1, 32), "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(8, 3),
    }  # fmt: skip
    return model.eval(), inputs, 1.0


BUILDERS = {"wan": wan, "wan with 3 heads": lambda: wan(3), "flux": flux}


class Run(NamedTuple):
    outputs: torch.Tensor
    stats: Stats


@torch.no_grad()
def run(name, preset, split=None, is_compiled=False, **changes):
    """The outputs of all steps, and what the session saw."""
    model, inputs, full = BUILDERS[name]()
    if split:
        split(model)
    if is_compiled:
        model.compile_repeated_blocks(backend="aot_eager")  # its own hook breaks graphs
    settings = SPARSE | changes
    for parameter in ("density", "block"):  # auto has no density, and clusters have no block
        if parameter not in PRESETS[preset].parameters():
            del settings[parameter]
    with vidsparse.sparsify(model, preset, **settings) as session:
        made = []
        for step, t in enumerate(TIMES):
            with model.cache_context("cond", step_index=step):
                timestep = torch.tensor([t * full])
                made.append(model(**inputs, timestep=timestep, return_dict=False)[0])
    return Run(torch.stack(made), session.stats)


def splitter(rank, **degrees):
    """What ``enable_parallelism`` does, which counts accelerators and finds none here."""
    config = ContextParallelConfig(**degrees)
    shape = config.mesh_shape
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=config.mesh_dim_names)
    config.setup(rank, RANKS, torch.device("cpu"), mesh)

    def split(model):
        parallel = ParallelConfig(context_parallel_config=config)
        for module in model.modules():
            if hasattr(getattr(module, "processor", None), "_parallel_config"):
                module.processor._parallel_config = parallel
        apply_context_parallel(model, config, model._cp_plan)

    return split


def work(rank, folder, cases):
    try:
        torch.set_num_threads(1)
        # named with its device, or diffusers asks a torch that is built for CUDA for a GPU
        dist.init_process_group(
            "cpu:gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
        )
        found = {}
        for label, (name, preset, degrees, changes) in cases.items():
            found[label] = run(name, preset, splitter(rank, **degrees), **changes)
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"{rank}.txt").write_text(traceback.format_exc())
        raise


ULYSSES = {"ulysses_degree": RANKS}
RING = {"ring_degree": RANKS}
ANYTHING = ULYSSES | {"ulysses_anything": True}
UNEVEN = [0.9, 0.7, 0.2, 0.1]  # of heads in turn: 1.68 times the mean on the first device
CASES: dict[str, Any] = {
    "draft": ("wan", "draft", ULYSSES, {}),
    "dense": ("wan", "draft", ULYSSES, {"density": 1.0}),
    "static": ("wan", "sta", ULYSSES, {}),
    "random": ("wan", "random", ULYSSES, {}),
    "one budget for a layer": ("wan", "balanced", ULYSSES, {}),
    "semantic": ("wan", "semantic", ULYSSES, {"q_clusters": 5}),
    "auto": ("wan", "auto", ULYSSES, {"tolerance": 0.3}),
    "plans kept": ("wan", "draft", ULYSSES, {"replan": 3, "budgets": "uneven.json"}),
    "uneven heads": ("wan", "draft", ULYSSES, {"budgets": "uneven.json"}),
    "any number of heads": ("wan with 3 heads", "balanced", ANYTHING, {}),
    "ring": ("wan", "balanced", RING, {}),
    "uneven heads on a ring": ("wan", "draft", RING, {"budgets": "uneven.json"}),
    "ring of any number of heads": (
        "wan with 3 heads",
        "draft",
        RING | {"ring_anything": True},
        {},
    ),
    "text apart": ("flux", "draft", ULYSSES, {}),
    "compiled": ("wan", "balanced", ULYSSES, {"is_compiled": True}),
}


def with_files(changes, folder):
    """Names of budget files become paths."""
    if "budgets" not in changes:
        return changes
    path = Path(folder) / changes["budgets"]
    path.write_text(json.dumps({"0": UNEVEN, "1": UNEVEN}))
    return changes | {"budgets": path}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cases = {
        label: (name, preset, degrees, with_files(changes, folder))
        for label, (name, preset, degrees, changes) in CASES.items()
    }
    try:  # forked, which spares two imports of everything
        mp.start_processes(  # type: ignore[attr-defined]
            work, (str(folder), cases), nprocs=RANKS, start_method="fork"
        )
    except Exception:
        pytest.fail("\n".join(path.read_text() for path in folder.glob("*.txt")))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture
def alone(tmp_path):
    def run_alone(label):
        name, preset, _, changes = CASES[label]
        return run(name, preset, **with_files(changes, tmp_path))

    return run_alone


@pytest.mark.parametrize("label", CASES)
def test_two_processes_make_what_one_makes(ranks, alone, label):
    expected = alone(label)
    assert not expected.stats.fallbacks
    for found in ranks:
        torch.testing.assert_close(found[label].outputs, expected.outputs, rtol=1e-4, atol=1e-5)
        assert not found[label].stats.fallbacks
        for call, density in expected.stats.calls.items():  # of all heads, on every device
            torch.testing.assert_close(found[label].stats.calls[call], density)


@pytest.mark.parametrize("label", ["draft", "semantic", "plans kept"])
def test_a_device_remembers_its_own_heads(ranks, alone, label):
    whole = alone(label).stats
    for found in ranks:
        own = found[label].stats
        assert own.memory_bytes == whole.memory_bytes / RANKS
        assert own.host_memory_bytes == whole.host_memory_bytes / RANKS > 0


@pytest.mark.parametrize("label", ["uneven heads", "uneven heads on a ring", "plans kept"])
def test_heads_are_dealt_out_by_their_work(ranks, label):
    """In turn at the first step; by what that step kept at the second."""
    first, *later = ranks[0][label].stats.step_imbalance.values()
    assert first == pytest.approx(1.6 / 0.95, abs=0.1)
    assert max(later) < 1.1
