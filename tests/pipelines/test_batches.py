"""What a sample becomes does not depend on who shares its batch, guided or not."""

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.pipelines.models import find_model
from vidsparse.presets import PRESETS

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
SPARSE: dict[str, Any] = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0}


@functools.cache
def tiny_of(name):
    """Made once: whoever makes it sparse gives it back as it was."""
    return TINY[name]()


class Pipeline:
    """Runs branches of guidance as a model's pipelines do, in one call or in two."""

    def __init__(self, tiny, is_guided):
        self.components = {"transformer": tiny.module}
        self.transformer = tiny.module
        self.do_classifier_free_guidance = is_guided
        self.calls = 0

    @torch.no_grad()
    def __call__(self, *calls):
        made = []
        for inputs in calls:
            self.calls += 1
            made += batches(self.transformer(**inputs, return_dict=False))
        return made


def batches(made):
    """What a forward call returns: tensors, or lists of entries."""
    made = made if isinstance(made, tuple) else (made,)
    return [x for x in made if isinstance(x, torch.Tensor | list)]


def flat(made):
    return [x for each in made for x in (each if isinstance(each, list) else [each])]


DIMENSION = {"encoder_hidden_states_llama3": 1}  # of the batch, by argument
SHARED = {"padding_mask"}


def is_of_entries(x):
    """Whether a list has an item for each entry of the batch, which then has no such dimension."""
    if not isinstance(x, list) or not x:
        return False
    return not (isinstance(x[0], torch.Tensor) and (x[0].ndim < 2 or len(x[0]) == 1))


def first_entry(name, x, size):
    if is_of_entries(x):
        return x[:1] if len(x) == size else x
    is_batch = isinstance(x, torch.Tensor) and x.ndim and len(x) == size and name not in SHARED
    return x[:1] if is_batch else x


def join(name, parts):
    """Arguments of several entries as one."""
    first = parts[0]
    if name in SHARED:
        return first
    if isinstance(first, dict):
        return {key: join(key, [part[key] for part in parts]) for key in first}
    if isinstance(first, torch.Tensor) and first.ndim:
        dim = DIMENSION.get(name, 0)
        return torch.cat(parts, dim) if first.shape[dim] == 1 else first
    if is_of_entries(first) and len(first) == 1:
        return [x for part in parts for x in part]
    if isinstance(first, list | tuple) and first and isinstance(first[0], torch.Tensor):
        is_batch = all(x.ndim > 1 and len(x) == 1 for x in first)
        return type(first)(map(torch.cat, zip(*parts, strict=True))) if is_batch else first
    return first


def together(samples):
    return {name: join(name, [sample[name] for sample in samples]) for name in samples[0]}


def sample(tiny, number, branch=0):
    """Entry 0 with other latents for each sample, and another text for each branch."""
    size = len(tiny.inputs[tiny.latents])
    made = {name: first_entry(name, x, size) for name, x in tiny.inputs.items()}
    draw = torch.Generator().manual_seed(number)

    def other(x, generator):
        return x + 0.5 * torch.randn(x.shape, generator=generator)

    for name in text_of(made):
        draw_text = torch.Generator().manual_seed(100 + 10 * number + branch)
        made[name] = other(made[name], draw_text)
    latents = made[tiny.latents]
    is_list = isinstance(latents, list)
    made[tiny.latents] = [other(x, draw) for x in latents] if is_list else other(latents, draw)
    return made


def text_of(inputs):
    texts = ("encoder_hidden_states", "encoder_hidden_states_2", "encoder_hidden_states_t5")
    return [
        name
        for name in texts
        if isinstance(x := inputs.get(name), torch.Tensor) and x.is_floating_point()
    ]


def made_of(pipe, tiny, numbers):
    """What a pipeline makes of these samples, entry by entry."""
    guides = pipe.do_classifier_free_guidance
    branches = [[sample(tiny, n, branch) for n in numbers] for branch in range(1 + guides)]
    if guides and find_model(tiny.module).guidance != "calls":
        made = pipe(together(branches[0] + branches[1]))
    else:
        made = pipe(*(together(each) for each in branches))
    size = len(numbers)
    return flat([x[at::size] for at in range(size) for x in made])


@pytest.fixture(params=sorted(TINY))
def name(request):
    return request.param


def check_dense(name, is_guided):
    """So the batches are right."""
    tiny = tiny_of(name)
    pipe = Pipeline(tiny, is_guided)
    alone = [made_of(pipe, tiny, [n]) for n in range(3)]
    assert_close(made_of(pipe, tiny, range(3)), flat(alone))


def check(name, is_guided, preset="balanced", sizes=(2, 3), **changes):
    """So many samples at a time against each alone."""
    tiny = tiny_of(name)
    pipe = Pipeline(tiny, is_guided)
    densities, expected = [], []
    for n in range(max(sizes)):
        with vidsparse.sparsify(pipe, preset, **(SPARSE | changes)) as session:
            expected.append(made_of(pipe, tiny, [n]))
        densities.append(session.stats.mean_density)
    for size in sizes:
        calls = []
        with vidsparse.sparsify(pipe, preset, **(SPARSE | changes)) as session:
            session.observe(lambda call, *_, calls=calls: calls.append(call.key))
            assert_close(made_of(pipe, tiny, range(size)), flat(expected[:size]))
        stats = session.stats
        assert sorted(map(str, calls)) == sorted(map(str, stats.calls))  # made, and recorded
        assert stats.mean_density == pytest.approx(sum(densities[:size]) / size, abs=1e-4)
        assert {key.step for key in stats.calls} == {0}
        assert not stats.fallbacks
        assert not any("nobody says which step" in note for note in stats.notes)


def assert_close(made, expected):
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_guided", [False, True])
def test_a_sample_is_what_it_is_alone(name, is_guided):
    check_dense(name, is_guided)
    check(name, is_guided, block=16, density=0.4)


CLUSTERS = {"q_clusters": 4, "kv_clusters": 8}
CHANGES = {
    "semantic": CLUSTERS,
    "svg2": CLUSTERS | {"first_iterations": 5},
    "svg2-ear": CLUSTERS | {"first_iterations": 5},
    "auto": {"q_clusters": 4, "first_iterations": 5},
}


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("model", ["wan", "cogvideox", "hunyuan_video"])
def test_a_sample_is_what_it_is_alone_under_every_preset(preset, model):
    """Two samples of two branches: whoever mistakes one for the other gives other results."""
    changes = {"dense_layers": 0} | CHANGES.get(preset, {})
    if "block" in PRESETS[preset].override(changes).parameters() and preset not in ("psa",):
        changes |= {"block": 16}
    check(model, True, preset, sizes=(2,), **changes)
