"""Says what a tuned model trains, where, and how many bytes its trained part takes on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samparser.sam.families import family_of
from samparser.tuner import awaited_terms

from .registry import applied_method, with_placeholders
from .saving import trained_tensors

_SAFETENSORS_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What a method trains in a model.

    Attributes:
        method: Its name; None for a PEFT model that was built elsewhere.
        trained: Number of trained parameters by the part of the model they sit in; parts without any are left out.
        bytes_on_disk: Size of the safetensors file of the trained part. The JSON files beside it and the card come on
            top, a few kilobytes.
    """

    method: str | None
    trained: dict[str, int]
    bytes_on_disk: int

    @property
    def total(self) -> int:
        """All trained parameters."""
        return sum(self.trained.values())

    def __str__(self) -> str:
        parts = " + ".join(f"{count:,} in the {group}" for group, count in self.trained.items()) or "none"
        trained = f"{self.total:,} parameters trained ({parts})"
        return f"{self.method or 'PEFT'}: {trained}, {self.bytes_on_disk:,} bytes on disk"


def describe(model: nn.Module) -> Description:
    """Describe a model from `build` or `load_trained`, or any PeftModel; works on the meta device too.

    Terms of an expansion that have not been chosen count as if they had been.
    """
    adapter = getattr(model, "active_adapter", None)
    if isinstance(adapter, str) and awaited_terms(model, adapter):
        model = with_placeholders(_without_values(model))
    applied = applied_method(model)
    parameters = dict(model.named_parameters())
    if applied is not None:
        names = [name for name in applied.trained if name in parameters]
    else:
        names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    starts = _group_starts(model)
    groups: dict[str, int] = {}
    for name in names:
        plain = name.removeprefix("base_model.model.")
        group = next((group for start, group in starts if plain.startswith(start)), "other parts")
        groups[group] = groups.get(group, 0) + parameters[name].numel()
    bytes_on_disk = safetensors_bytes(trained_tensors(model))
    return Description(applied.name if applied is not None else None, groups, bytes_on_disk)


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the file that `save_file(tensors, ..., metadata={"format": "pt"})` writes; 0 for no tensors.

    A file is eight bytes of header length, the header as JSON padded to eight bytes, the tensors.
    https://huggingface.co/docs/safetensors
    """
    if not tensors:
        return 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        end = offset + tensor.numel() * tensor.element_size()
        dtype = _SAFETENSORS_DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + offset


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters are on the meta device."""
    empty = {
        id(tensor): nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        for tensor in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _group_starts(model: nn.Module) -> list[tuple[str, str]]:
    """Return where parameters sit, by the start of their names in the plain model; the first that matches counts."""
    starts = [
        ("prompt_encoder.", "prompt encoder"),
        ("shared_image_embedding.", "prompt encoder"),
        ("no_memory_embedding", "memory embedding"),
        ("mask_decoder.", "mask decoder"),
    ]
    try:
        family = family_of(model)
    except TypeError:  # a model that the tuner alone works on
        return [("vision_encoder.neck.", "neck"), ("vision_encoder.", "image encoder"), *starts]
    layers = [(f"{site.layer_name}.", "transformer layers") for site in family.attention_layers(model)]
    rest = "patch and position embedding" if layers else "convolutional network"
    return [*layers, (f"{family.neck_name}.", "neck"), ("vision_encoder.", rest), *starts]
