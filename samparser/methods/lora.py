"""LoRA on the attention of the image encoder: on queries and values as in SAMed, or on whole projections by PEFT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from samparser.sam import neck_targets

from .registry import method
from .sam_parts import attention_layers, mask_decoder, plain_linear


class QueryValueLoRA(nn.Module):
    """Low-rank change of the query and value rows of a linear layer.

    A fused projection holds the rows of queries, keys and values in this order; `rows` says which are changed. With A
    of shape (rank, in) and B of shape (rows, rank) for each of them,

        q(x) = W_q x + scale B_q A_q x        k(x) = W_k x        v(x) = W_v x + scale B_v A_v x.

    PEFT's LoRA on the same layer has one A and one B for all its rows, so it changes the keys as well. The factors are
    kept in float32 at least. A starts uniform as a Linear does, B at zero. SAMed (https://arxiv.org/abs/2304.13785),
    LoRA (https://arxiv.org/abs/2106.09685).

    Args:
        base_layer: The projection; its own parameters are left as they are.
        rank: Rank of each of the changes.
        scale: Factor of the changes; SAMed has none, which is 1.
        rows: Rows of queries and values by these names; the first and last third where they are not given. Both are
            there in a fused projection, one in a projection of its own.
    """

    def __init__(
        self, base_layer: nn.Linear, rank: int, scale: float = 1.0, rows: Mapping[str, slice] | None = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        third = base_layer.out_features // 3
        self.rows = dict(rows or {"query": slice(0, third), "value": slice(2 * third, 3 * third)})
        weight = base_layer.weight
        kind: Any = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        for part in self.rows:
            a = nn.Parameter(torch.empty(rank, base_layer.in_features, **kind))
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            self.register_parameter(f"{part}_a", a)
        for part, changed in self.rows.items():
            size = len(range(*changed.indices(base_layer.out_features)))
            self.register_parameter(f"{part}_b", nn.Parameter(torch.zeros(size, rank, **kind)))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the projection makes, (..., out), of tokens (..., in)."""
        projected = self.base_layer(x)
        narrow = x.to(torch.promote_types(self.base_layer.weight.dtype, torch.float32))
        # The projection's output is needed by no backward pass, so the changes are added to it where it lies.
        for part, changed in self.rows.items():
            a, b = self._factors(part)
            projected[..., changed].add_((F.linear(F.linear(narrow, a), b) * self.scale).to(projected.dtype))
        return projected

    def _factors(self, part: str) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"{part}_a"), self.get_parameter(f"{part}_b")

    @torch.no_grad()
    def merged_module(self) -> nn.Linear:
        """Return the same function as one `nn.Linear`: the changes are added in float32 at least and rounded once.

        Raises:
            ValueError: A factor holds a value that is not finite.
        """
        base = self.base_layer
        weight = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        change = torch.zeros_like(weight)
        for part, changed in self.rows.items():
            a, b = self._factors(part)
            change[changed] = (b @ a) * self.scale
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
        linear.weight.copy_(weight + change)
        if base.bias is not None:
            linear.bias.copy_(base.bias)
        return linear.requires_grad_(False).train(self.training)

    def extra_repr(self) -> str:
        """Return what is changed, rank and scale, for printing."""
        rank = len(self.get_parameter(f"{next(iter(self.rows))}_a"))
        return f"{' and '.join(self.rows)}, rank={rank}, scale={self.scale}"


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
    layers: dict[str, tuple[nn.Linear, dict[str, slice]]] = {}
    for site in attention_layers(model, "lora"):
        for part, made in (("query", site.query), ("value", site.value)):
            layers.setdefault(made.name, (plain_linear(site, part, "lora"), {}))[1][part] = made.rows
    for name, (linear, rows) in layers.items():
        model.set_submodule(name, QueryValueLoRA(linear, rank, alpha / rank, rows))
    mask_decoder(model).requires_grad_(decoder)
    return model


@method(
    "lora-qkv",
    summary="PEFT's LoRA of rank 4 on the projections to queries, keys and values, and the mask decoder",
    trains_upstream=True,
)
def lora_qkv(model: nn.Module, rank: int = 4, alpha: float | None = None, decoder: bool = True) -> nn.Module:
    """Put PEFT's LoRA on the whole projection: it changes the keys as well and is saved as PEFT's own files.

    On a fused projection of SAM it has as many parameters as the method on queries and values alone, (1 + 3) width
    rank = 2 (1 + 1) width rank. Separate projections, as in SAM 3, get a pair of factors each. `alpha` and `decoder` as
    for `lora`.
    """
    alpha = _check_rank(rank, alpha)
    names: dict[str, None] = {}
    for site in attention_layers(model, "lora-qkv"):
        for part in ("query", "key", "value"):
            plain_linear(site, part, "lora-qkv")
            names[getattr(site, part).name] = None
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(names), modules_to_save=["mask_decoder"] if decoder else None
    )
    return get_peft_model(model, config)


@method(
    "lora-neck",
    summary="PEFT's LoRA of rank 1 on the neck's convolutions",
    trains_upstream=False,
)
def lora_neck(model: nn.Module, rank: int = 1, alpha: float | None = None, decoder: bool = False) -> nn.Module:
    """Put PEFT's LoRA where the coefficients are: on SAM ViT-B 3,584 parameters a rank, against 512 coefficients.

    `alpha` and `decoder` as for `lora`.
    """
    alpha = _check_rank(rank, alpha)
    try:
        model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        raise TypeError(
            f"Method 'lora-neck' cannot be applied: PEFT's LoRA asks for a model's input embeddings, and this "
            f"{type(model).__name__} names none. 'samparser' and 'samparser-coefficients' train its neck."
        ) from None
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=neck_targets(model),
        modules_to_save=["mask_decoder"] if decoder else None,
    )
    return get_peft_model(model, config)


def _check_rank(rank: int, alpha: float | None) -> float:
    if rank < 1:
        raise ValueError(f"The rank of LoRA is {rank}; it must be 1 or more (the paper's is 4).")
    return float(rank) if alpha is None else alpha
