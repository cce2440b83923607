"""Compiled blocks and weights that wait in host memory, both under a sparse session.

    python examples/compile_and_offload.py

In this order: compile, offload, then the session. The hooks that bring a block's weights stay
outside of compiled code, which would else compute before they have arrived. One compiled graph
serves all blocks, and a layer's sparse attention is one custom op in it, so nothing is compiled
after the first step. On a machine without a GPU the weights are moved from the CPU to the CPU,
which shows that it works and saves nothing.
"""

from __future__ import annotations

from typing import Any

import torch

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline

PROMPT = "a blue circle swaying over a light yellow dotted background"


def set_up(pipe: Any, device: str, backend: str = "inductor") -> None:
    """Compile the blocks of the transformer, and let their weights wait.

    Args:
        pipe: A diffusers pipeline.
        device: Where it computes.
        backend: Of torch.compile.
    """
    for block in pipe.transformer.blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    rest = {name: part for name, part in pipe.components.items() if name != "transformer"}
    for part in rest.values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device(device),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device != "cpu",
    )


def generate(pipe: Any, prompt: str, **request: Any) -> tuple[Any, str]:
    """The frames of a video, and what the session did."""
    with vidsparse.sparsify(pipe, "fast", min_tokens=0) as session:
        frames = pipe(prompt, generator=torch.Generator().manual_seed(0), **request).frames[0]
    return frames, session.summary()


def main() -> None:
    pipe = load_pipeline()
    set_up(pipe, "cuda" if torch.cuda.is_available() else "cpu")
    size = {"num_frames": 17, "height": 128, "width": 128, "num_inference_steps": 10}
    _, summary = generate(pipe, PROMPT, guidance_scale=4.0, **size)
    print(summary)


if __name__ == "__main__":
    main()
