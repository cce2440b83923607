"""Folders of pipelines that are given more than a prompt, made of folders of those that are not.

Diffusers makes several pipelines of the same components: mostly the name of the class is all that
differs, and where the transformer takes more channels, it is a random one.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import diffusers
import torch

WAN = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
FROM = {  # each class, and the pipeline from text that it is made of
    "WanVideoToVideoPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
    "WanVACEPipeline": "wan",
    "CogVideoXVideoToVideoPipeline": "cogvideox",
    "CogVideoXImageToVideoPipeline": "cogvideox",
    "LTXConditionPipeline": "ltx",
    "FluxImg2ImgPipeline": "flux",
    "FluxKontextPipeline": "flux",
    "FluxFillPipeline": "flux",
    "FluxControlPipeline": "flux",
    "CogVideoXFunControlPipeline": "cogvideox",
}
WIDER: dict[str, tuple[str, dict[str, Any]]] = {  # class and changes of its transformer's config
    "FluxFillPipeline": ("FluxTransformer2DModel", {"in_channels": 12, "out_channels": 4}),
    "FluxControlPipeline": ("FluxTransformer2DModel", {"in_channels": 8, "out_channels": 4}),
    "CogVideoXFunControlPipeline": ("CogVideoXTransformer3DModel", {"in_channels": 8}),
    "CogVideoXImageToVideoPipeline": ("CogVideoXTransformer3DModel", {"in_channels": 8}),
    "WanImageToVideoPipeline": ("WanTransformer3DModel", {"in_channels": 36}),
    "WanVACEPipeline": (
        "WanVACETransformer3DModel",
        {"vace_layers": [0], "vace_in_channels": 96},
    ),
}
LEFT_OUT = {"WanImageToVideoPipeline": ("image_encoder", "image_processor")}


def wan(folder: Path) -> None:
    """A text-to-video pipeline with the VAE of Wan 2.1, but small."""
    WAN["one_expert"]().save_pretrained(folder)


def turn_into(kind: str, source: Path, folder: Path) -> Path:
    """Make a pipeline of another class of the components of a folder, which are linked.

    Args:
        kind: The class.
        source: Folder of a pipeline.
        folder: Is made.
    """
    folder.mkdir(parents=True)
    for part in source.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    index = json.loads((source / "model_index.json").read_text())
    if kind in WIDER:
        name, changes = WIDER[kind]
        (folder / "transformer").unlink()
        config = json.loads((source / "transformer" / "config.json").read_text())
        own = {key: value for key, value in config.items() if key[0] != "_"}
        torch.manual_seed(0)
        getattr(diffusers, name)(**(own | changes)).save_pretrained(folder / "transformer")
        index["transformer"] = ["diffusers", name]
    index |= {name: [None, None] for name in LEFT_OUT.get(kind, ())}
    index["_class_name"] = kind
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
