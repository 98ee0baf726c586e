"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al., 2024), in float32.

``torch.optim.Muon`` orthogonalises in bfloat16, for GPUs; on CPUs that costs several times the training step itself.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: the steepest at zero that stays within (0.7, 1.2) at one."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; kernels count as matrices (out, in * height * width).

    A step's size is scaled to AdamW's usual one, 0.2 per entry at a rate of 1, so that both take the same rates and the
    same weight decay.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                state = self.state[value]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(value))
                buffer.lerp_(value.grad, 1 - group["momentum"])
                update = value.grad.lerp(buffer, group["momentum"])
                direction = orthogonalised(update.flatten(1)).view_as(value)
                value.mul_(1 - group["lr"] * group["weight_decay"])
                value.add_(direction, alpha=-group["lr"] * 0.2 * max(direction.flatten(1).shape) ** 0.5)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The matrix (m, n) with all singular values drawn to about one, its singular vectors kept."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
