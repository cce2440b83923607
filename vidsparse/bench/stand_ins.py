"""What stands in for parts that a denoising loop asks, though it does not denoise with them.

LTX-2 turns text embeddings into those of its two streams, and hands out latents in the scale of its
VAEs, all within the call that denoises. None of it is a part of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Connectors:
    """Random embeddings for video and for audio.

    Attributes:
        widths: Numbers of an embedding for video, and for audio.
    """

    widths: tuple[int, int]

    def __call__(self, embeds: Tensor, mask: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Those of a text.

        Args:
            embeds: ``(batch, length, width)``.
            mask: ``(batch, length)``.
            how: Which side is padded; nothing is.
        """
        draw = torch.Generator().manual_seed(embeds.shape[1])
        video, audio = (
            torch.randn(*embeds.shape[:2], width, generator=draw).to(embeds)
            for width in self.widths
        )
        return video, audio, mask


class Statistics:
    """A VAE whose latents have mean zero and deviation one.

    Args:
        config: What else a pipeline asks of it.
    """

    def __init__(self, **config: Any) -> None:
        self.latents_mean, self.latents_std = torch.zeros(()), torch.ones(())
        self.config = SimpleNamespace(**config)


def put_stand_ins(pipe: Any) -> None:
    """Give a pipeline of video and audio what its loop asks, beside a transformer and a scheduler.

    Args:
        pipe: Its parts left out.
    """
    config = pipe.transformer.config
    whole = config["use_prompt_embeddings"]
    streams = (
        ("caption_channels",) * 2 if whole else ("cross_attention_dim", "audio_cross_attention_dim")
    )
    pipe.connectors = Connectors((config[streams[0]], config[streams[1]]))
    pipe.vae = Statistics(scaling_factor=1.0)
    pipe.audio_vae = Statistics(
        latent_channels=config["audio_in_channels"],
        mel_bins=pipe.audio_vae_mel_compression_ratio,  # one row of latents
    )
