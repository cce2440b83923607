"""Train a LoRA while attention is sparse, on the small pipeline that ships.

    python examples/finetune_sparse.py

The clip, a black and white target that grows, is rendered here; the model has never seen one. Each
training step draws its noise level at random, so attention is as sparse as the preset's schedule
says for that level. Forward and backward pass both belong inside the session.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

import vidsparse
from vidsparse.pipelines.running.load import load_pipeline

PROMPT = "a white circle growing over a dark gray background"
RANK = 16


def render(frames: int, size: int) -> Tensor:
    """Rings around the middle that grow, ``(1, 3, frames, size, size)`` in [-1, 1]."""
    line = torch.linspace(-1, 1, size)
    radius = (line[:, None] ** 2 + line**2).sqrt()
    grown = torch.arange(1, frames + 1)[:, None, None] / frames
    rings = torch.sin(12 * radius / (0.5 + grown)).sign()
    return rings.expand(3, frames, size, size)[None].contiguous()


@torch.no_grad()
def encode(pipe: WanPipeline, frames: int, size: int) -> tuple[Tensor, Tensor]:
    """The latents of the clip and the embedding of its prompt."""
    latents = pipe.vae.encode(render(frames, size)).latent_dist.mode()
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    text, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    return (latents - mean) / std, text


def flow_loss(transformer: nn.Module, clean: Tensor, text: Tensor, draw: torch.Generator) -> Tensor:
    """Squared error of the velocity from the clip to noise, at a random noise level."""
    sigma = torch.rand(1, generator=draw)
    noise = torch.randn(clean.shape, generator=draw)
    noisy = (1 - sigma) * clean + sigma * noise
    velocity = transformer(noisy, sigma * 1000, text, return_dict=False)[0]
    return (velocity - (noise - clean)).square().mean()


@torch.no_grad()
def mean_loss(transformer: nn.Module, clean: Tensor, text: Tensor, draws: int = 2) -> float:
    """The loss at noise levels that are always the same."""
    seeds = (torch.Generator().manual_seed(seed) for seed in range(draws))
    return sum(float(flow_loss(transformer, clean, text, draw)) for draw in seeds) / draws


def train(
    pipe: WanPipeline, *, steps: int, frames: int, size: int, preset: str = "balanced"
) -> Iterator[float]:
    """Train a LoRA; yields the mean loss before, and after every fourth of the steps."""
    transformer = pipe.transformer
    transformer.requires_grad_(False)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
    transformer.enable_gradient_checkpointing()
    clean, text = encode(pipe, frames, size)
    learned = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    draw = torch.Generator().manual_seed(1_000)
    with vidsparse.sparsify(pipe, preset, min_tokens=0) as session:
        yield mean_loss(transformer, clean, text)
        for step in range(1, steps + 1):
            flow_loss(transformer, clean, text, draw).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % max(1, steps // 4) == 0:
                yield mean_loss(transformer, clean, text)
        print(session.summary())


def main() -> None:
    pipe = load_pipeline()
    for loss in train(pipe, steps=16, frames=9, size=128):
        print(f"loss {loss:.3f}")
    learned: dict[str, Any] = get_peft_model_state_dict(pipe.transformer)
    WanPipeline.save_lora_weights("target_lora", learned)
    print("the LoRA is in target_lora/: pipe.load_lora_weights('target_lora') takes it")


if __name__ == "__main__":
    main()
