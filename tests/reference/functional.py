"""What an adapted layer computes, the slow obvious way: the whole weight in float64, one position after another."""

import torch
from torch import Tensor, nn


def adapted_weight(u: Tensor, p: Tensor, vh: Tensor) -> Tensor:
    """``sum_i p_i u_i vh_i``, one rank-one matrix after another, in float64."""
    weight = torch.zeros(u.shape[0], vh.shape[1], dtype=torch.float64)
    for i in range(len(p)):
        weight = weight + p[i].double() * torch.outer(u[:, i].double(), vh[i].double())
    return weight


def layer_output(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's output with a weight (out, fan_in), in float64: patches of the input, each times the matrix.

    Convolutions of one group with zero padding, after Dumoulin and Visin, https://arxiv.org/abs/1603.07285, section 4.
    Transposed ones, whose weight is (in, out * kernel), have neither padding nor dilation.
    """
    x, bias = x.double(), None if base.bias is None else base.bias.double()
    if isinstance(base, nn.ConvTranspose2d):
        return _transposed_output(base, x, weight, bias)
    if not isinstance(base, nn.Conv2d):
        y = x @ weight.T
        return y if bias is None else y + bias
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = base.kernel_size, base.stride, base.padding, base.dilation
    padded = torch.zeros(*x.shape[:2], x.shape[2] + 2 * ph, x.shape[3] + 2 * pw, dtype=torch.float64)
    padded[:, :, ph : ph + x.shape[2], pw : pw + x.shape[3]] = x
    rows = range(0, padded.shape[2] - dh * (kh - 1), sh)
    columns = range(0, padded.shape[3] - dw * (kw - 1), sw)
    y = torch.zeros(len(x), len(weight), len(rows), len(columns), dtype=torch.float64)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            patch = padded[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw]
            y[:, :, i, j] = patch.reshape(len(x), -1) @ weight.T
    return y if bias is None else y + bias[:, None, None]


def _transposed_output(base: nn.ConvTranspose2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every position adds its block to the output, at its place times the stride."""
    (kh, kw), (sh, sw) = base.kernel_size, base.stride
    height, width = x.shape[2:]
    y = torch.zeros(len(x), base.out_channels, (height - 1) * sh + kh, (width - 1) * sw + kw, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            block = (x[:, :, i, j] @ weight).view(len(x), -1, kh, kw)
            y[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw] += block
    return y if bias is None else y + bias[:, None, None]


def three_layers(base: nn.Conv2d, p: Tensor, u: Tensor, vh: Tensor) -> nn.Sequential:
    """The way of SVF, https://arxiv.org/abs/2206.06122: a convolution by V, a scaling by p, a convolution by U."""
    first = nn.Conv2d(base.in_channels, len(p), base.kernel_size, base.stride, base.padding, base.dilation, bias=False)
    last = nn.Conv2d(len(p), base.out_channels, 1, bias=base.bias is not None)
    with torch.no_grad():
        first.weight.copy_(vh.view_as(first.weight))
        last.weight.copy_(u[:, :, None, None])
        if base.bias is not None and last.bias is not None:
            last.bias.copy_(base.bias)
    return nn.Sequential(first.requires_grad_(False), _Scale(p), last.requires_grad_(False))


class _Scale(nn.Module):
    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(p.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.p[:, None, None]
