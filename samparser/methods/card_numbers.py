"""The trained numbers of a saved adapter, for its model card: how many of each kind, along what, and what they saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME
from safetensors import safe_open

_TERMS = {
    "pairs": "terms `c u_i v_j`, pairs of different bases",
    "gradient": "terms `c a b` along directions of the gradient, which are stored with them",
    "random": "terms `c a b` along random directions, which are stored with them",
}


def count_trained(path: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Count the trained parameters in an adapter's file by kind, told from the tensors' names."""
    bases_trained = config.get("trainable", "coefficients") in ("bases", "both")
    counts: dict[str, int] = {}
    with safe_open(path, framework="numpy") as file:
        names = file.keys()
        for name in names:
            kind = _kind(name, config.get("modules_to_save") or [], bases_trained)
            if kind is not None:
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                counts[kind] = counts.get(kind, 0) + size
    # What the method is about comes first.
    return dict(sorted(counts.items(), key=lambda item: item[0] != "coefficients"))


def _kind(name: str, modules_to_save: Sequence[str], bases_trained: bool) -> str | None:
    """The kind of trained parameter a tensor is; None for what is saved and not trained."""
    parts = name.split(".")
    own = next((part for part in parts if part.startswith("svd_coefficient_")), None)
    if own is not None:
        what = own.removeprefix("svd_coefficient_")
        if what in ("u", "vh"):
            return "bases" if bases_trained else None
        # p0 and the directions of terms, a and b, are kept with the adapter and do not train.
        return {"p0": None, "a": None, "b": None, "c": "terms"}.get(what, "coefficients")
    return next((module for module in modules_to_save if f".{module}." in f".{name}."), "other parameters")


def read_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the kind of an adapter's terms and their shares of the signal by layer, as far as the configuration says."""
    kind, record = config.get("expansion"), config.get("expansion_record")
    measured = {
        name: layer["share"].get("all")
        for name, layer in (record.items() if isinstance(record, dict) else ())
        if isinstance(layer, dict) and isinstance(layer.get("share"), dict)
    }
    shares = {name: share for name, share in measured.items() if isinstance(share, float) and math.isfinite(share)}
    return {"expansion": kind if isinstance(kind, str) else None, "shares": shares}


def what_trains(trained: Mapping[str, int], expansion: str | None) -> str:
    """Say which numbers trained: `p`, `c` or both.

    Args:
        trained: Counts by kind.
        expansion: The kind of the terms, None for none.
    """
    if expansion is None:
        return "the coefficients `p`"
    terms = f"the numbers `c` of {_TERMS.get(expansion, 'further terms of rank one')}"
    return f"the coefficients `p` and {terms}" if "coefficients" in trained else terms


def what_they_saw(shares: Mapping[str, float], shown: int = 8) -> str:
    """Write a line on the share of the signal that the numbers saw in each layer; nothing where nobody measured."""
    if not shares:
        return ""
    listed = [f"{100 * share:.1f} % in `{name}`" for name, share in shares.items()]
    more = f", and {len(listed) - shown} layers more (all in `{CONFIG_NAME}`)" if len(listed) > shown else ""
    seen = ", ".join(listed[:shown]) + more
    return f"\n- Share of the gradient's signal that these numbers saw before training: {seen}"
