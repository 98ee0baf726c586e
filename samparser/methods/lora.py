"""LoRA on the attention of SAM's image encoder: on queries and values as in SAMed, or on the whole fused projection."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from .registry import method
from .sam_parts import fused_projections, mask_decoder, transformer_layers


class QueryValueLoRA(nn.Module):
    """Low-rank change of the query and value rows of a fused query-key-value projection.

    The weight of the projection, of shape (3 width, width), holds the rows of queries, keys and values in this order.
    With A of shape (rank, width) and B of shape (width, rank) for each of the two,

        q(x) = W_q x + scale B_q A_q x        k(x) = W_k x        v(x) = W_v x + scale B_v A_v x.

    PEFT's LoRA on the same layer has one A and one B of shape (3 width, rank), so it changes the keys as well; with
    equal rank both happen to have the same number of parameters. The factors are kept in float32 at least. A starts
    uniform as a Linear does, B at zero. SAMed (https://arxiv.org/abs/2304.13785), LoRA
    (https://arxiv.org/abs/2106.09685).

    Args:
        base_layer: The fused projection; its own parameters are left as they are.
        rank: Rank of each of the two changes.
        scale: Factor of the changes; SAMed has none, which is 1.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = base_layer.in_features
        self.scale = scale
        weight = base_layer.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.query_a, self.value_a = (
            nn.Parameter(torch.empty(rank, self.width, device=weight.device, dtype=dtype)) for _ in range(2)
        )
        self.query_b, self.value_b = (
            nn.Parameter(torch.zeros(self.width, rank, device=weight.device, dtype=dtype)) for _ in range(2)
        )
        for a in (self.query_a, self.value_a):
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values side by side, (..., 3 width), of tokens (..., width)."""
        projected = self.base_layer(x)
        narrow = x.to(self.query_a.dtype)
        # The projection's output is needed by no backward pass, so the changes are added to it where it lies.
        projected[..., : self.width] += self._change(narrow, self.query_a, self.query_b).to(projected.dtype)
        projected[..., -self.width :] += self._change(narrow, self.value_a, self.value_b).to(projected.dtype)
        return projected

    def _change(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(F.linear(x, a), b) * self.scale

    @torch.no_grad()
    def merged_module(self) -> nn.Linear:
        """Return the same function as one `nn.Linear`: the changes are added in float32 at least and rounded once.

        Raises:
            ValueError: A factor holds a value that is not finite.
        """
        base = self.base_layer
        query, value = ((b @ a) * self.scale for a, b in ((self.query_a, self.query_b), (self.value_a, self.value_b)))
        change = torch.cat([query, torch.zeros_like(query), value])
        if not torch.isfinite(change).all():
            raise ValueError(
                f"The LoRA factors give {int((~torch.isfinite(change)).sum())} values that are not finite; the model "
                f"is left unmerged. Load an earlier checkpoint, or train with a smaller learning rate."
            )
        linear = nn.Linear(
            base.in_features,
            base.out_features,
            bias=base.bias is not None,
            device=base.weight.device,
            dtype=base.weight.dtype,
        )
        linear.weight.copy_(base.weight.to(change.dtype) + change)
        if base.bias is not None:
            linear.bias.copy_(base.bias)
        return linear.requires_grad_(False).train(self.training)

    def extra_repr(self) -> str:
        """Return rank and scale, for printing."""
        return f"rank={len(self.query_a)}, scale={self.scale}"


@method(
    "lora",
    summary="LoRA of rank 4 on the queries and values of every transformer layer, and the mask decoder",
    trains_upstream=True,
    paper='"LoRA" of Tables 3 to 5, after SAMed',
)
def lora(model: nn.Module, rank: int = 4, alpha: float | None = None, decoder: bool = True) -> nn.Module:
    """Put LoRA on queries and values alone, as SAMed does: 147,456 parameters on ViT-B at rank 4.

    `alpha`: the changes are scaled by alpha / rank; not given, the scale is 1, as in SAMed. `decoder`: also train
    the mask decoder.
    """
    alpha = _check_rank(rank, alpha)
    for layer, qkv in zip(transformer_layers(model), fused_projections(model), strict=True):
        cast(Any, layer).attn.qkv = QueryValueLoRA(qkv, rank, alpha / rank)
    mask_decoder(model).requires_grad_(decoder)
    return model


@method(
    "lora-qkv",
    summary="PEFT's LoRA of rank 4 on the fused query-key-value projections, and the mask decoder",
    trains_upstream=True,
)
def lora_qkv(model: nn.Module, rank: int = 4, alpha: float | None = None, decoder: bool = True) -> nn.Module:
    """Put PEFT's LoRA on the fused projection: it changes the keys as well and is saved as PEFT's own files.

    It has as many parameters as the method on queries and values alone: (1 + 3) width rank = 2 (1 + 1) width rank.
    `alpha` and `decoder` as for `lora`.
    """
    alpha = _check_rank(rank, alpha)
    names = [f"vision_encoder.layers.{index}.attn.qkv" for index in range(len(fused_projections(model)))]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, modules_to_save=["mask_decoder"] if decoder else None
    )
    return get_peft_model(model, config)


def _check_rank(rank: int, alpha: float | None) -> float:
    if rank < 1:
        raise ValueError(f"The rank of LoRA is {rank}; it must be 1 or more (the paper's is 4).")
    return float(rank) if alpha is None else alpha
