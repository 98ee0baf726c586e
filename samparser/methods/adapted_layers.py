"""Transformer layers of the image encoders with an adapter on the output of their attention.

    h = x + adapter(attention(norm1(x))),    y = h + mlp(norm2(h))

The adapter sees the whole grid of tokens, (B, H, W, C), also where the attention works in windows: a convolution in it
crosses the windows' borders, and no work is spent on the windows' padding. Where a layer of SAM 2 pools its queries,
the grid is the pooled one, and x is pooled and widened as transformers does it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

Attend = Callable[[Any, Tensor, dict[str, Any]], tuple[Tensor, Tensor]]
"""Takes layer, tokens and the layer's further arguments; gives what x is after the skip, and the attention's output."""


def adapted_layer(name: str, layer: nn.Module, adapter: nn.Module) -> nn.Module:
    """Return the layer with the adapter, as a module of its own that shares the layer's parts.

    Args:
        name: Name of the layer, for the message.
        layer: A transformer layer of one of transformers' SAM families.
        adapter: Maps (B, H, W, C) to the same shape.

    Raises:
        TypeError: The layer is of another class.
    """
    plain: Any = type(layer)
    if plain.__name__ not in _ATTEND or not plain.__module__.startswith("transformers.models."):
        raise TypeError(
            f"{name} is a {plain.__name__}; adapters go into the layers of transformers' image encoders: "
            f"{', '.join(_ATTEND)}. Methods 'lora' and 'transformer' change the linear layers within."
        )
    return _adapted_class(plain)(layer, adapter)


@cache
def _adapted_class(plain: Any) -> Callable[[nn.Module, nn.Module], nn.Module]:
    """Return the class of a layer with an adapter.

    transformers recognises the layers whose outputs it records, and recomputes under gradient checkpointing, by their
    class; therefore this is a subclass. The parts of the given layer keep their names.
    """
    attend = _ATTEND[plain.__name__]

    class AdaptedVisionLayer(plain):
        def __init__(self, layer: nn.Module, adapter: nn.Module) -> None:
            nn.Module.__init__(self)
            # Sizes and marks of gradient checkpointing, but no hooks and no forward that someone put on the instance.
            for name, value in vars(layer).items():
                if name not in vars(self) and name != "forward":
                    setattr(self, name, value)
            for name, part in layer.named_children():
                setattr(self, name, part)
            for name, buffer in layer.named_buffers(recurse=False):
                self.register_buffer(name, buffer, persistent=False)
            self.adapter = adapter
            self.train(layer.training)

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            """Map tokens (B, H, W, C) to tokens of the same shape, or of the next stage's."""
            residual, attended = attend(self, hidden_states, kwargs)
            hidden_states = residual + self.adapter(attended)
            change: Tensor = self.mlp(self.layer_norm2(hidden_states))
            return hidden_states + (self.dropout(change) if hasattr(self, "dropout") else change)

    AdaptedVisionLayer.__name__ = f"Adapted{plain.__name__}"
    return AdaptedVisionLayer


def _attend_sam(layer: Any, x: Tensor, _: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """SAM and SAM-HQ, whose layers part and join the windows themselves."""
    tokens = layer.layer_norm1(x)
    if not layer.window_size:
        return x, layer.attn(hidden_states=tokens)[0]
    windows, padded = layer.window_partition(tokens, layer.window_size)
    attended, _ = layer.attn(hidden_states=windows)
    return x, layer.window_unpartition(attended, layer.window_size, padded, tuple(tokens.shape[1:3]))


def _attend_sam2(layer: Any, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """SAM 2, whose first layer of a stage widens the tokens and pools queries within the windows."""
    from transformers.models.sam2.modeling_sam2 import do_pool, window_partition, window_unpartition

    tokens, window = layer.layer_norm1(x), layer.window_size
    residual = x if layer.dim == layer.dim_out else do_pool(layer.proj(tokens), layer.query_stride)
    if not window:
        return residual, layer.attn(hidden_states=tokens, **kwargs)
    windows, padded = window_partition(tokens, window)
    attended = layer.attn(hidden_states=windows, **kwargs)
    size = tuple(residual.shape[1:3])
    if layer.query_stride:
        window //= layer.query_stride[0]
        padded = tuple(side + -side % window for side in size)
    return residual, window_unpartition(attended, window, padded, size)


def _attend_sam3(layer: Any, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """SAM 3, whose attention turns queries and keys by their places in the window."""
    from transformers.models.sam3.modeling_sam3 import window_partition, window_unpartition

    tokens = layer.layer_norm1(x)
    windows, padded = window_partition(tokens, layer.window_size) if layer.window_size else (tokens, None)
    # Older transformers keep the places in the embedding.
    places = (windows, layer.position_ids) if hasattr(layer, "position_ids") else ()
    attended, _ = layer.attention(windows, layer.rotary_emb(*places), **kwargs)
    if layer.window_size:
        attended = window_unpartition(attended, layer.window_size, padded, tuple(tokens.shape[1:3]))
    return x, attended


_ATTEND: dict[str, Attend] = {
    "SamVisionLayer": _attend_sam,
    "SamHQVisionLayer": _attend_sam,
    "Sam2MultiScaleBlock": _attend_sam2,
    "Sam3ViTLayer": _attend_sam3,
}
