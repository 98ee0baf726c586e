"""Turns a tuned model into a plain one of the base's architecture, which needs no library but transformers."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel
from torch import nn

from samparser.sam.changes import is_tuned
from samparser.sam.families import family_of

from .registry import applied_method, get_method, set_applied_method


def merged(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """Return the plain model that computes the same; `save_pretrained` of it is a whole checkpoint.

    Weights that a method adds are formed in float32 and rounded once to the base's dtype; weights that it trained in
    place are taken as they are. A tuned model of a family whose released models replace unstable masks does so no more,
    by its own config, as these masks come from heads that nothing trained. A plain model comes back as it is.

    Args:
        model: A tuned model.
        in_place: Whether the given model may be taken apart, which saves a copy of its weights. It must not be used
            afterwards.

    Raises:
        ValueError: The method cannot be merged (the reason is given), or what was trained is not finite.
    """
    applied = applied_method(model)
    if applied is not None:
        method = get_method(applied.name)
        if method.not_mergeable_because is not None:
            raise ValueError(f"Method {method.name!r} cannot be merged: {method.not_mergeable_because}.")
    if not in_place:
        model = copy.deepcopy(model)
    tuned = isinstance(model, PeftModel) or is_tuned(model)
    if isinstance(model, PeftModel):
        plain = model.merge_and_unload(safe_merge=True)
    else:
        plain = _merge_modules(model)
    if tuned:
        _keep_single_mask(plain)
    set_applied_method(plain, None)
    return plain.requires_grad_(False)


def _keep_single_mask(plain: nn.Module) -> None:
    try:
        family = family_of(plain, "Merging")
    except TypeError:  # what the tuner alone works on
        return
    family.keep_single_mask(plain)


@torch.no_grad()
def _merge_modules(model: nn.Module) -> nn.Module:
    """Replace every module that has `merged_module()` by what it returns, all or none."""
    plain = {name: module.merged_module() for name, module in model.named_modules() if hasattr(module, "merged_module")}
    for name, module in plain.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    return model
