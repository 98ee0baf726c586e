"""The parts of a model that the methods tune, asked of its family and refused by name where it lacks them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from samparser.sam.families import AttentionSite, Rows, family_of

# The convolutions of SAM 2 and its kin that bring two high-resolution maps from the neck into the mask decoder.
SKIP_CONVOLUTIONS = ("mask_decoder.conv_s0", "mask_decoder.conv_s1")


def mask_decoder(model: nn.Module) -> nn.Module:
    """Return the mask decoder."""
    return _part(model, "mask_decoder")


def neck(model: nn.Module) -> nn.Module:
    """Return the convolutional neck at the end of the image encoder."""
    return _part(model, family_of(model, "A method that trains the neck").neck_name)


def skip_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the convolutions that bring high-resolution maps into the mask decoder.

    Raises:
        TypeError: The model has none.
    """
    modules = dict(model.named_modules())
    if lacking := [name for name in SKIP_CONVOLUTIONS if not isinstance(modules.get(name), nn.Conv2d)]:
        raise TypeError(
            f"This {type(model).__name__} has no convolution {' or '.join(lacking)}: its mask decoder takes no "
            f"high-resolution maps. Leave `skips` out; SAM 2, EdgeTAM and SAM 3 have them."
        )
    return list(SKIP_CONVOLUTIONS)


def transposed_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the transposed convolutions of the neck that have a part in a model's masks.

    Raises:
        TypeError: The neck has none.
    """
    family = family_of(model, "Option 'transposed'")
    idle = tuple(f"{part}." for part in family.idle(model))
    found = [
        name
        for name, module in model.named_modules()
        if name.startswith(f"{family.neck_name}.")
        and isinstance(module, nn.ConvTranspose2d)
        and not f"{name}.".startswith(idle)
    ]
    if not found:
        raise TypeError(
            f"The neck of this {type(model).__name__} has no transposed convolutions; SAM 3's has them. Leave "
            "`transposed` out."
        )
    return found


def attention_layers(model: nn.Module, method: str) -> Sequence[AttentionSite]:
    """Return the attention layers of the image encoder, from first to last.

    Args:
        model: A model of a family.
        method: What needs them, for the message.

    Raises:
        TypeError: The model is of no family, or its image encoder has no attention, as EdgeTAM's.
    """
    sites = family_of(model, f"Method {method!r}").attention_layers(model)
    if not sites:
        raise TypeError(
            f"Method {method!r} changes the transformer layers of an image encoder, and that of this "
            f"{type(model).__name__} has none: it is a convolutional network. Methods that leave such layers alone "
            f"work: 'samparser' and its variants, 'bases', 'decoder', 'full-neck', 'full'."
        )
    return sites


def transformer_linear_names(model: nn.Module, method: str) -> list[str]:
    """Return the names of all `nn.Linear` in the transformer layers of the image encoder; raises as above."""
    layers = tuple(f"{site.layer_name}." for site in attention_layers(model, method))
    return [name for name, module in model.named_modules() if name.startswith(layers) and isinstance(module, nn.Linear)]


def plain_linear(site: AttentionSite, part: str, method: str) -> nn.Linear:
    """Return the layer that makes a site's queries, keys or values.

    Args:
        site: One attention layer.
        part: `query`, `key` or `value`.
        method: What needs it, for the message.

    Raises:
        TypeError: It is no plain `nn.Linear`, such as a quantised one, or lacks the outputs.
    """
    made: Rows = getattr(site, part)
    if type(made.linear) is not nn.Linear or made.linear.out_features < made.rows.stop:
        raise TypeError(
            f"{made.name} is {made.linear!r}; method {method!r} needs an nn.Linear of at least {made.rows.stop} "
            f"outputs there. 'samparser', 'decoder' and 'full-neck' leave the transformer layers alone."
        )
    return made.linear


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise TypeError(
            f"This {type(model).__name__} has no {name}; its parts are "
            f"{', '.join(child for child, _ in model.named_children()) or 'none'}. "
            f"Give a model of a SAM family, as load_sam returns it."
        ) from error
