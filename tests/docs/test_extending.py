"""What docs/extending.md says of each thing to add: one of each is added here, and runs."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vidsparse
from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import ENGINES
from vidsparse.policies.compensation import Compensation
from vidsparse.policies.correction import Correction, Run
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.orders import Arranged, Hilbert, Order
from vidsparse.policies.policy import Policy
from vidsparse.policies.pooled import Pooled
from vidsparse.policies.selectors import Selection, Selector, TopK
from vidsparse.policies.work import Kernel, Work
from vidsparse.progress import Progress
from vidsparse.schedule import Schedule
from vidsparse.sparse_attention import Call, SparseAttention

ROOT = Path(__file__).parents[2]
GRID = TokenGrid(4, 8, 8)
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SMALL: dict[str, Any] = {"min_tokens": 0, "block": 16, "warmup": 0.0, "ramp_until": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest(Estimator):
    """Blocks whose mean keys are nearest to the mean query."""

    penalty: float = 1.0

    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs: Inputs) -> Estimate:
        return Estimate(scores=-self.penalty * torch.cdist(inputs.q_means, inputs.k_means).square())


@dataclass(frozen=True, slots=True, kw_only=True)
class Backwards(Order):
    """Tokens from the last to the first."""

    def arrange(self, inputs: Inputs) -> Arranged:
        if inputs.q is None:
            return Arranged(inputs)
        order = torch.arange(inputs.blocks.grid.tokens - 1, -1, -1, dtype=torch.int32)[None, None]
        q, k, v = (x.flip(2) for x in inputs.qkv)
        return Arranged(dataclasses.replace(inputs, q=q, k=k, v=v), order, order)

    def again(self, inputs: Inputs) -> Arranged:
        return self.arrange(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOnly(Selector):
    """So many blocks of every row, whatever the density."""

    count: int = 2

    takes_ranks: ClassVar[bool] = True

    @property
    def has_amount(self) -> bool:
        return True

    def select(self, these: Selection) -> Any:
        density = self.count / these.estimate.scores.shape[-1]
        return TopK().select(dataclasses.replace(these, density=density))


@dataclass(frozen=True, slots=True, kw_only=True)
class Louder(Compensation):
    """The output times a factor."""

    factor: float = 2.0

    def attend(
        self, work: Work, kernel: Kernel, *, way: float, replan: int
    ) -> tuple[Tensor, float]:
        return self.factor * kernel(*work.inputs.qkv, work.plan), 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned(Correction):
    """The output with its sign turned, said to cost half of dense."""

    def attend(self, run: Run, work: Work, kernel: Kernel) -> tuple[Tensor, float | Tensor]:
        out, besides = run()
        return -out, besides + 0.5

    def pairs(self, ways: Sequence[float]) -> list[float]:
        return [0.5 * (way > 0) for way in ways]


def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, GRID.tokens, 2, 16, generator=generator) for _ in range(3)]


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(preset, engine="auto"):
    """The output of one call at full sparsity, and its density."""
    attention = SparseAttention(preset, engine=engine, strict=True)
    call = Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.5))
    q, k, v = qkv()
    out = attention(q, k, v, call, dense)
    return out, attention.stats


def changed(name="draft", **changes):
    return vidsparse.PRESETS[name].override(SMALL | changes)


def test_a_preset_of_parts_that_exist():
    curve = vidsparse.Preset(
        name="curve", summary="A draft along a Hilbert curve", source="mine",
        policy=Policy(order=Hilbert(), estimator=Pooled(), mean_density=0.35),
        schedule=Schedule(warmup=0.05, ramp_until=0.3),
    )  # fmt: skip
    out, stats = attend(curve.override(SMALL | {"mean_density": 0.25}))
    assert stats.mean_density == pytest.approx(0.25)
    assert (out - dense(*qkv())).abs().max() > 1e-3


def test_an_estimator():
    out, stats = attend(changed(estimator=Nearest(penalty=0.5), density=0.25))
    assert stats.mean_density == pytest.approx(0.25)
    assert not torch.allclose(out, attend(changed(density=0.25))[0])
    preset = changed(estimator=Nearest(penalty=0.5))
    assert preset.parameters()["penalty"] == 0.5
    assert preset.override({"penalty": "0.25"}).parameters()["penalty"] == 0.25


def test_an_order():
    everything, _ = attend(changed(order=Backwards(), density=1.0))
    torch.testing.assert_close(everything, dense(*qkv()), rtol=1e-4, atol=1e-4)
    out, stats = attend(changed(order=Backwards(), density=0.25))
    assert stats.mean_density == pytest.approx(0.25)
    torch.testing.assert_close(out, attend(changed(density=0.25))[0], rtol=1e-4, atol=1e-4)


def test_a_selector():
    _, stats = attend(changed(selector=BestOnly(count=3), density=None))
    assert stats.mean_density == pytest.approx(3 / 16)


def test_a_compensation():
    plain, _ = attend(changed(density=0.25))
    louder, _ = attend(changed(density=0.25, compensation=Louder(factor=3.0)))
    torch.testing.assert_close(louder, 3 * plain)


def test_a_correction():
    plain, _ = attend(changed(density=0.25))
    turned, stats = attend(changed(density=0.25, correction=Turned()))
    torch.testing.assert_close(turned, -plain)
    assert stats.mean_density == pytest.approx(0.25 + 0.5)


def test_a_name_for_a_part_is_one_row(monkeypatch):
    from vidsparse.policies import parts

    monkeypatch.setitem(parts.ESTIMATORS, "nearest", Nearest)
    preset = changed(estimator="nearest", penalty="2")
    assert preset.policy.estimator == Nearest(penalty=2.0)


def test_an_engine_is_one_row(monkeypatch):
    ran = []

    def mine(*args, **kwargs):
        ran.append(args[0].shape)
        return ENGINES["reference"].run(*args, **kwargs)

    row = dataclasses.replace(ENGINES["reference"], name="mine", run=mine)
    monkeypatch.setitem(ENGINES, "mine", row)
    out, stats = attend(changed(density=0.25), engine="mine")
    assert ran
    assert stats.engines == {"mine": 1}
    torch.testing.assert_close(out, attend(changed(density=0.25), engine="reference")[0])


def files_that_name(word, *folders):
    """The Python files of the package that name something, in text or in code."""
    files = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    found = re.compile(rf"\b{word}\b")
    return [
        str(path.relative_to(ROOT))
        for path in files
        if found.search(path.read_text(encoding="utf-8"))
    ]


def test_a_metric_is_named_in_its_file_alone():
    assert files_that_name("nss_distance", "metrics", "vidsparse") == ["metrics/natural.py"]


def test_a_model_is_named_in_its_row_alone():
    """One whose pipeline says all of itself."""
    found = files_that_name("ErnieImageTransformer2DModel", "pipelines", "vidsparse", "metrics")
    assert set(found) - {"vidsparse/pipelines/models.py"} == {"pipelines/models.py"}


def test_a_command_is_one_file_and_two_lines():
    package = (ROOT / "vidsparse" / "cli" / "__init__.py").read_text(encoding="utf-8")
    code = package.partition('"""\n')[2]
    lines = [line for line in code.splitlines() if re.search(r"\bdoctor\b", line)]
    assert len(lines) == 2, lines


def test_the_page_has_a_section_for_each_row_of_its_table():
    rows = re.findall(r"^\| \[[^\]]+\]\(#([\w-]+)\)", PAGE, flags=re.MULTILINE)
    assert len(rows) == 9
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    assert set(rows) == headings


@pytest.mark.parametrize("number", range(len(re.findall(r"^```python", PAGE, re.MULTILINE))))
def test_the_code_of_the_page_compiles(number):
    code = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[number]
    compile(code, f"docs/extending.md, block {number}", "exec")
