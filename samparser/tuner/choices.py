"""Choices beyond the plain ones: which of a configuration's fields go together, and what they ask for in a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from peft.utils.other import get_pattern_key

from samparser._untrusted import refuse_other_counts

from .expansion import Expansion, Wanted


class Choices(Protocol):
    """The fields of `SVDCoefficientConfig` that are looked at here."""

    trainable: str
    parametrization: str
    form: str
    save_basis: bool
    rank: int | None
    top: float | None
    expansion: Any
    expansion_rank: int | dict[str, int] | None
    expansion_dtype: Any
    expansion_record: dict[str, dict[str, Any]] | None

    @property
    def trains_bases(self) -> bool:
        """Whether U and Vh are trained."""

    @property
    def has_own_bases(self) -> bool:
        """Whether the adapter brings U and Vh."""


PLAIN = {
    "trainable": "coefficients",
    "save_basis": False,
    "top": None,
    "expansion": None,
    "expansion_rank": None,
    "expansion_dtype": "float32",
    "expansion_record": None,
}
"""The plain choices, which go together with everything."""


def check_together(config: Choices) -> None:
    """Refuse choices that do not go together.

    Raises:
        ValueError: One field asks for what another rules out.
    """
    if config.trainable in ("bases", "expansion") and config.top is not None:
        raise ValueError(
            f"top={config.top} says how many coefficients train, but trainable={config.trainable!r} trains none."
        )
    if config.top is not None and config.rank is not None:
        raise ValueError(f"rank={config.rank} and top={config.top} both say how many coefficients train; give one.")
    if config.top is not None and not (0 < config.top <= 1 or (config.top >= 1 and config.top == int(config.top))):
        raise ValueError(f"top={config.top!r} has to be a share above 0 and up to 1.0, or a whole number above 0.")
    if config.trainable == "bases" and config.parametrization != "absolute":
        raise ValueError(
            f"parametrization={config.parametrization!r} says how coefficients are trained, but trainable='bases' "
            "trains none. Use trainable='both' or leave parametrization='absolute'."
        )
    if config.form == "factored" and config.has_own_bases:
        what = "save_basis=True" if config.save_basis else f"trainable={config.trainable!r}"
        raise ValueError(
            f"form='factored' uses the bases of the layer, but {what} gives the adapter bases of its own. Leave "
            "form='auto'."
        )
    _check_expansion(config)


def _check_expansion(config: Choices) -> None:
    if config.expansion is None:
        plain = {"trainable": "expansion", "expansion_rank": None, "expansion_dtype": "float32"}
        given = [name for name, usual in plain.items() if (getattr(config, name) == usual) is (name == "trainable")]
        given += ["expansion_record"] if config.expansion_record else []
        if given:
            raise ValueError(
                f"{given[0]}={getattr(config, given[0])!r} is about the terms of an expansion, but there is none: set "
                "expansion to 'pairs', 'gradient' or 'random', or leave it out."
            )
        return
    if config.trains_bases:
        raise ValueError(
            f"expansion={config.expansion!r} adds terms along frozen directions, but trainable={config.trainable!r} "
            "trains the bases. Use trainable='coefficients', or 'expansion' for the terms alone."
        )
    if config.save_basis:
        raise ValueError(
            f"expansion={config.expansion!r} does not go with save_basis=True: pairs are pairs of the layer's own "
            "bases. Leave save_basis out; expansion='gradient' stores its directions."
        )
    if config.expansion == "mixed" and config.expansion_record is None:
        raise ValueError("expansion='mixed' is what a sum of adapters has; choose 'pairs', 'gradient' or 'random'.")
    counts = config.expansion_rank
    by_layer = counts if isinstance(counts, dict) else {}
    if counts == {}:
        raise ValueError(
            "expansion_rank is an empty dictionary: name layers, give one number for all, or leave it out."
        )
    refuse_other_counts({f"expansion_rank[{key!r}]": count for key, count in by_layer.items()})
    refuse_other_counts({} if isinstance(counts, dict) else {"expansion_rank": counts})


def wanted_terms(config: Choices, layer: str) -> Wanted | None:
    """Say what terms an adapter asks for in a layer; None for none."""
    if config.expansion is None or config.expansion == "mixed":
        return None
    count = config.expansion_rank
    if isinstance(count, dict):
        count = count.get(get_pattern_key(count.keys(), layer))
        if count is None:
            return None
    if config.expansion_record is not None and layer not in config.expansion_record:
        return None
    return Wanted(config.expansion, count, stored_dtype(config))


def stored_dtype(config: Choices) -> torch.dtype:
    """Give the dtype of the vectors that an expansion stores."""
    return torch.float16 if config.expansion_dtype == "float16" else torch.float32


def chosen_terms(config: Choices, layer: str, rank: int | None = None) -> Expansion | None:
    """Read the terms that an adapter has in a layer of that many bases; None where it has none, or none yet.

    Raises:
        ValueError: The record of the terms is damaged or does not fit the layer.
    """
    record = (config.expansion_record or {}).get(layer)
    return None if record is None else Expansion.from_record(layer, record, rank)


def check_patterns(config: Choices, layers: Sequence[str]) -> None:
    """Refuse a pattern in expansion_rank that names no layer of the adapter.

    Raises:
        ValueError: There is one.
    """
    for pattern in config.expansion_rank if isinstance(config.expansion_rank, dict) else ():
        if not any(get_pattern_key([pattern], name) == pattern for name in layers):
            raise ValueError(
                f"expansion_rank names {pattern!r}, which is no layer that is adapted; these are "
                f"{', '.join(layers[:8])}."
            )
