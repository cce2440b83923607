"""Muon for many small matrices at once, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_TORCH: Any = torch  # whose _foreach functions have no types
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon as ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`` computes it, batched by shape.

    torch's own takes one matrix after the other, some 3,600 launches a step on this transformer:
    a fifth of a step on a GPU. It also refuses convolutions, which here are matrices of a row
    for each output channel. Paper: https://kellerjordan.github.io/posts/muon, arXiv 2502.16982.

    Args:
        params: Tensors of two or more dimensions.
        lr: Learning rate, on the scale of AdamW's.
        momentum: Nesterov momentum.
        weight_decay: Decoupled, as a share of ``lr``.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_shape.setdefault((len(param), param[0].numel()), []).append(param)
            for shape, params in by_shape.items():
                self._update(shape, params, group)
        return loss

    def _update(self, shape: tuple[int, int], params: list[Tensor], group: dict[str, Any]) -> None:
        gradient = torch.stack(
            [p.grad.reshape(shape).float() for p in params if p.grad is not None]
        )
        state = self.state[params[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = _orthogonal(gradient.lerp(state["momentum"], group["momentum"]))
        step = 0.2 * max(shape) ** 0.5 * group["lr"]
        flat = [p.view(shape) for p in params]
        _TORCH._foreach_mul_(flat, 1 - group["lr"] * group["weight_decay"])
        _TORCH._foreach_sub_(flat, list((update.to(flat[0].dtype) * step).unbind(0)))


def _orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: towards the nearest matrix whose singular values are all one."""
    a, b, c = _QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Average:
    """Exponential moving average of parameters; the first steps weigh less.

    Args:
        params: What is averaged.
        decay: Share of the average that is kept at each step, in the long run.
    """

    def __init__(self, params: Sequence[nn.Parameter], decay: float) -> None:
        self.params = list(params)
        self.decay = decay
        self.steps = 0
        self.values = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the parameters."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        _TORCH._foreach_lerp_(self.values, [p.detach() for p in self.params], 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their average; a second call undoes it."""
        for param, value in zip(self.params, self.values, strict=True):
            kept = param.detach().clone()
            param.copy_(value)
            value.copy_(kept)


def split(params: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[Any], list[Any]]:
    """Return the parameters for Muon, matrices between hidden layers, and those for AdamW."""
    matrices, rest = [], []
    for name, param in params:
        hidden = "blocks" in name or "block." in name
        is_matrix = param.ndim >= 2 and min(len(param), param[0].numel()) >= 16
        (matrices if hidden and is_matrix and name.endswith("weight") else rest).append(param)
    return matrices, rest
