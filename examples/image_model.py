"""Sparse attention in a pipeline that makes images: the same line as for videos.

    python examples/image_model.py

The small pipeline that ships draws one frame here. A real image model is loaded in the same way:
``FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16)``, and
gains from about 2,000 x 2,000 pixels on, where attention is most of a step.
"""

from __future__ import annotations

from typing import Any

import torch

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.video import to_uint8, write_image

PROMPT = "a large red star over a light blue dotted background"


def draw(
    pipe: Any, prompt: str, *, min_tokens: int | None = None, **request: Any
) -> tuple[Any, str]:
    """One image, and what the session did.

    Args:
        pipe: A diffusers pipeline that makes images, or videos of one frame.
        prompt: What the image shows.
        min_tokens: Shorter sequences run dense; None leaves it to the device, of which many gain
            nothing with an image of fewer than about 9,000 tokens.
        **request: What else the pipeline takes, such as ``height``.

    Returns:
        The image, uint8 ``(1, height, width, 3)``, and a few lines.
    """
    with vidsparse.sparsify(pipe, "balanced", min_tokens=min_tokens) as session:
        made = pipe(prompt, generator=torch.Generator().manual_seed(0), **request)
    image = made.images[:1] if hasattr(made, "images") else made.frames[0]
    return to_uint8(image), session.summary()


def main() -> None:
    request = {"num_frames": 1, "height": 384, "width": 384, "num_inference_steps": 20}
    image, summary = draw(load_pipeline(), PROMPT, guidance_scale=4.0, **request)
    write_image("star.png", image)
    print(summary)


if __name__ == "__main__":
    main()
