"""``AutoencoderKLWan`` over whole clips at once: the same weights and mathematics, faster to train.

diffusers runs the causal VAE in chunks of four frames with caches. Here each causal 3 x 3 x 3
convolution is one 2-D convolution over three copies shifted in time. Inside, tensors are
``(batch, frames, height, width, channels)``. The VAE must be residual, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn


def encode(vae: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and logarithm of the variance of ``(batch, 3, frames, height, width)`` clips.

    Both are ``(batch, channels, (frames - 1) / 4 + 1, height / 8, width / 8)``.
    """
    net, x = vae.encoder, patchify(clips, vae.config.patch_size).permute(0, 2, 3, 4, 1)
    x = _causal(net.conv_in, x)
    for block in net.down_blocks:
        shortcut = _average(block.avg_shortcut, x)
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        x = (x if block.downsampler is None else _down(block.downsampler, x)) + shortcut
    x = _causal(net.conv_out, _norm_silu(net.norm_out, _middle(net.mid_block, x)))
    mean, variance = _causal(vae.quant_conv, x).permute(0, 4, 1, 2, 3).chunk(2, 1)
    return mean, variance


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the clips of latents that ``encode`` gave, not clamped."""
    net, x = vae.decoder, _causal(vae.post_quant_conv, latents.permute(0, 2, 3, 4, 1))
    x = _middle(net.mid_block, _causal(net.conv_in, x))
    for block in net.up_blocks:
        shortcut = None if block.avg_shortcut is None else _repeat(block.avg_shortcut, x)
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        x = x if block.upsampler is None else _up(block.upsampler, x)
        x = x if shortcut is None else x + shortcut
    x = _causal(net.conv_out, _norm_silu(net.norm_out, x))
    return unpatchify(x.permute(0, 4, 1, 2, 3).contiguous(), vae.config.patch_size)


def latent_scale(vae: Any, device: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the latents' channels, ``(1, channels, 1, 1, 1)``."""
    mean, deviation = vae.config.latents_mean, vae.config.latents_std
    shape = (1, -1, 1, 1, 1)
    return (
        torch.tensor(mean, device=device).view(shape),
        torch.tensor(deviation, device=device).view(shape),
    )


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=stride, padding=padding)
    return x.permute(0, 2, 3, 1)


def _past(x: Tensor) -> Tensor:
    """Stack each frame on the two before it, along the channels."""
    padded, frames = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0)), x.shape[1]
    return torch.cat([padded[:, :frames], padded[:, 1 : frames + 1], padded[:, 2:]], -1)


def _causal(conv: nn.Conv3d, x: Tensor) -> Tensor:
    batch, frames = x.shape[:2]
    weight, (depth, side, _) = conv.weight, conv.kernel_size
    if depth == 3:
        x, weight = _past(x), weight.permute(0, 2, 1, 3, 4).flatten(1, 2)
    else:
        weight = weight[:, :, 0]
    assert conv.bias is not None
    if side == 1:
        return F.linear(x, weight.flatten(1), conv.bias)
    return _conv2d(x.flatten(0, 1), weight, conv.bias, padding=side // 2).unflatten(
        0, (batch, frames)
    )


def _plain_norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-12) * gamma
    return F.silu(wide).to(x.dtype)


_compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(_plain_norm_silu)


def _norm_silu(norm: Any, x: Tensor) -> Tensor:
    """On a GPU it is compiled, once for each number of channels: the memory-bound part."""
    rows, gamma = x.reshape(-1, x.shape[-1]), norm.gamma.flatten()
    if x.is_cuda:
        torch._dynamo.maybe_mark_dynamic(rows, 0)
        return _compiled(rows, gamma).view(x.shape)
    return _plain_norm_silu(rows, gamma).view(x.shape)


def _resnet(block: Any, x: Tensor) -> Tensor:
    shortcut = block.conv_shortcut
    kept = x if isinstance(shortcut, nn.Identity) else _causal(shortcut, x)
    x = _causal(block.conv1, _norm_silu(block.norm1, x))
    return _causal(block.conv2, _norm_silu(block.norm2, x)) + kept


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _resnet(resnet, _attend(attention, x))
    return x


def _attend(block: Any, x: Tensor) -> Tensor:
    """Attention within each frame."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-12)
    y = (wide * block.norm.gamma.flatten()).to(x.dtype).flatten(2, 3).flatten(0, 1)
    q, k, v = F.linear(y, block.to_qkv.weight[:, :, 0, 0], block.to_qkv.bias).chunk(3, -1)
    y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return x + F.linear(y, block.proj.weight[:, :, 0, 0], block.proj.bias).view(x.shape)


def _down(block: Any, x: Tensor) -> Tensor:
    batch, frames = x.shape[:2]
    conv = block.resample[1]
    x = _conv2d(F.pad(x.flatten(0, 1), (0, 0, 0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    x = x.unflatten(0, (batch, frames))
    if block.mode == "downsample3d" and frames > 1:
        conv = block.time_conv
        triples = torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2]], -1)
        weight = conv.weight[..., 0, 0].permute(0, 2, 1).flatten(1)
        x = torch.cat([x[:, :1], F.linear(triples, weight, conv.bias)], 1)
    return x


def _up(block: Any, x: Tensor) -> Tensor:
    if block.mode == "upsample3d" and x.shape[1] > 1:
        pairs = _causal(block.time_conv, x[:, 1:]).unflatten(-1, (2, -1))
        x = torch.cat([x[:, :1], pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)], 1)
    batch, frames = x.shape[:2]
    conv = block.resample[1]
    return _conv2d(_spread(x, 1, 2).flatten(0, 1), conv.weight, conv.bias, padding=1).unflatten(
        0, (batch, frames)
    )


def _average(block: Any, x: Tensor) -> Tensor:
    """The shortcut down: means of neighbours, and of channels where there are then too many."""
    time, side = block.factor_t, block.factor_s
    x = F.pad(x, (0, 0, 0, 0, 0, 0, -x.shape[1] % time, 0))
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).unflatten(1, (-1, time))
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)  # channels, then time, row and column in them
    return x.unflatten(-1, (block.out_channels, block.group_size)).mean(-1)


def _repeat(block: Any, x: Tensor) -> Tensor:
    """The shortcut up: each value in all the places it becomes."""
    assert block.repeats == block.factor_t * block.factor_s**2  # as many channels out as in
    return _spread(x, block.factor_t, block.factor_s)[:, block.factor_t - 1 :]


def _spread(x: Tensor, time: int, side: int) -> Tensor:
    batch, frames, height, width, channels = x.shape
    x = x[:, :, None, :, None, :, None]
    x = x.expand(batch, frames, time, height, side, width, side, channels)
    return x.reshape(batch, frames * time, height * side, width * side, channels)
