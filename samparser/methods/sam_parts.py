"""The parts of a SAM that the methods tune, found by structure and refused by name where a model lacks them."""

from __future__ import annotations

from torch import nn


def mask_decoder(model: nn.Module) -> nn.Module:
    """Return the mask decoder of a SAM."""
    return _part(model, "mask_decoder")


def neck(model: nn.Module) -> nn.Module:
    """Return the convolutional neck at the end of the image encoder."""
    return _part(model, "vision_encoder.neck")


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """Return the transformer layers of the image encoder.

    Raises:
        TypeError: The model's image encoder is of another kind.
    """
    layers = _part(model, "vision_encoder.layers")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise TypeError(f"vision_encoder.layers of this {type(model).__name__} is no list of transformer layers.")
    return layers


def fused_projections(model: nn.Module) -> list[nn.Linear]:
    """Return the projection to queries, keys and values, `attn.qkv`, of every layer of the image encoder.

    Raises:
        TypeError: The model's image encoder has no such projections.
    """
    projections = []
    for index, layer in enumerate(transformer_layers(model)):
        qkv = getattr(getattr(layer, "attn", None), "qkv", None)
        if not isinstance(qkv, nn.Linear) or type(qkv) is not nn.Linear or qkv.out_features != 3 * qkv.in_features:
            raise TypeError(
                f"vision_encoder.layers.{index}.attn.qkv of this {type(model).__name__} is "
                f"{'missing' if qkv is None else repr(qkv)}; this method needs an nn.Linear with three times as many "
                f"outputs as inputs, as in SamModel. 'samparser', 'decoder' and 'full' know more kinds of models."
            )
        projections.append(qkv)
    return projections


def transformer_linear_names(model: nn.Module) -> list[str]:
    """Return the names of all `nn.Linear` in the transformer layers of the image encoder."""
    transformer_layers(model)
    return [
        name
        for name, module in model.named_modules()
        if name.startswith("vision_encoder.layers.") and isinstance(module, nn.Linear)
    ]


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise TypeError(
            f"This {type(model).__name__} has no {name}; its parts are "
            f"{', '.join(child for child, _ in model.named_children()) or 'none'}. "
            f"Give a SamModel, or another Segment Anything model of transformers with this part."
        ) from error
