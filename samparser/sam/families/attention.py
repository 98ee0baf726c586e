"""Attention layers whose queries, keys and values come from one linear layer."""

from __future__ import annotations

from typing import Any

from .base import AttentionSite, Rows


def fused_attention(name: str, attention: Any, width: int) -> AttentionSite:
    """Return the site of an attention layer with one projection `qkv` of 3 * width outputs, and `proj` after it.

    Args:
        name: Its full name in the plain model.
        attention: The layer.
        width: Outputs of the queries, of the keys and of the values; inputs may be fewer, where the width changes.
    """
    query, key, value = (
        Rows(f"{name}.qkv", attention.qkv, slice(part * width, (part + 1) * width)) for part in range(3)
    )
    return AttentionSite(name, attention, query, key, value, Rows(f"{name}.proj", attention.proj, slice(0, width)))
