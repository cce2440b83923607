"""The example that trains a LoRA, on a clip that is small enough for a test."""

import runpy
from pathlib import Path

from vidsparse.pipelines.running.load import load_pipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_sparse.py"


def test_a_few_steps_lower_the_loss(capsys):
    example, pipe = runpy.run_path(str(EXAMPLE)), load_pipeline()
    frozen = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    before, *_, after = example["train"](pipe, steps=8, frames=5, size=64)
    assert after < 0.95 * before
    assert "nothing fell back to dense" in capsys.readouterr().out
    for name, parameter in pipe.transformer.named_parameters():
        name = name.replace(".base_layer", "")
        assert "lora" in name or (parameter == frozen[name]).all()
