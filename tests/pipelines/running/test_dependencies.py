"""What diffusers imports lazily and then takes for granted is among our dependencies."""

import importlib

import pytest

CLEAN = ("wan.pipeline_wan_i2v", "wan.pipeline_wan_vace", "wan.pipeline_wan_animate",
         "wan.pipeline_wan", "skyreels_v2.pipeline_skyreels_v2", "chronoedit.pipeline_chronoedit",
         "lucy.pipeline_lucy_edit", "helios.pipeline_helios")  # fmt: skip


@pytest.mark.parametrize("module", CLEAN)
def test_prompts_are_cleaned_as_the_authors_do(module):
    clean = importlib.import_module(f"diffusers.pipelines.{module}").prompt_clean
    assert clean("  a\tblue  \u00c3\u00a9 ") == "a blue \u00e9"  # mojibake, as ftfy mends it
