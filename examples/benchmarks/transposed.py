"""Transposed convolutions of SAM's decoders and of SAM 3's neck: as products and rebuilt, against the plain layer."""

from dataclasses import dataclass

import torch
from torch import nn

from .layers import coefficients, step
from .measure import alternate, cell, device, repeats, table


@dataclass(frozen=True)
class Enlarging:
    """A transposed convolution of kernel and stride 2, and its input.

    Attributes:
        name: Where a SAM has it.
        inputs: Channels of its input.
        outputs: Channels of its output.
        side: Height and width of the input in positions.
        channels_last: Whether the input has its channels last in memory, where the model gives it so.
    """

    name: str
    inputs: int
    outputs: int
    side: int
    channels_last: bool = False

    def layer(self) -> nn.ConvTranspose2d:
        """The plain layer, frozen, the same each time."""
        torch.manual_seed(0)
        return nn.ConvTranspose2d(self.inputs, self.outputs, 2, stride=2, device=device()).requires_grad_(False)

    def input(self) -> torch.Tensor:
        """A random image of features."""
        x = torch.randn(1, self.inputs, self.side, self.side, device=device())
        return x.to(memory_format=torch.channels_last) if self.channels_last else x


LAYERS = (
    Enlarging("SAM 3 neck, level 0, first", 1024, 512, 72, channels_last=True),
    Enlarging("SAM 3 neck, level 0, second", 512, 256, 144, channels_last=True),
    Enlarging("SAM-HQ compress_vit_conv1", 768, 256, 64),
    Enlarging("decoder upscale_conv1", 256, 64, 64),
    Enlarging("decoder upscale_conv2", 64, 32, 128),
)
SMALL = (Enlarging("small", 12, 6, 8, channels_last=True), Enlarging("smaller", 6, 3, 8))


def measure_transposed(layers: tuple[Enlarging, ...], rounds: int) -> str:
    """Forward and backward of each layer in both forms, over the plain layer's."""
    parts = []
    for input_grad in (False, True):
        rows = [_one_layer(layer, rounds, input_grad=input_grad) for layer in layers]
        title = (
            "input with gradient, over forward and backward of the frozen layer"
            if input_grad
            else "frozen input, over the forward pass of the frozen layer"
        )
        header = ["layer", "samparser", "as products", "rebuilt", "frozen layer"]
        parts.append(f"Forward and backward, {title}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _one_layer(layer: Enlarging, rounds: int, *, input_grad: bool) -> list[str]:
    base, x = layer.layer(), layer.input().requires_grad_(input_grad)
    dy = torch.randn_like(base(x).detach())

    def forward_only() -> None:
        with torch.no_grad():
            base(x)

    candidates = {
        "auto": coefficients(layer.layer()),
        "factored": coefficients(layer.layer(), form="factored"),
        "rebuilt": coefficients(layer.layer(), form="rebuilt"),
    }
    runs = {"plain": step(base, x, dy) if input_grad else forward_only}
    runs |= {key: step(module, x, dy) for key, module in candidates.items()}
    timings = alternate(runs, rounds, baseline="plain", inner=repeats(runs["plain"], rounds))
    name = f"{layer.name}: {layer.inputs}->{layer.outputs}, {layer.side}x{layer.side}"
    return [name, *(cell(timings[key]) for key in candidates), f"{1000 * timings['plain'].seconds:.0f} ms"]
