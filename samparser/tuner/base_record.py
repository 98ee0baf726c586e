"""What an adapter remembers of the base weights it was trained on, and the comparison with those it is loaded on.

The record of a layer is its fingerprint and p0, kept in the adapter's configuration: there it is known before anything
is injected, whichever way the adapter is loaded.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bases import Bases, bases_of
from .fingerprint import Verdict, compare, fingerprint

Record = dict[str, Any]

WAY_ON = (
    "read the adapter's configuration with SVDCoefficientConfig.from_pretrained, set its base_check to 'warn' and pass "
    "it as config= to PeftModel.from_pretrained"
)


@dataclass(frozen=True)
class Match:
    """A layer ready for an adapter: its bases, and where the adapter's coefficients count from.

    ``origin`` is the p0 from which the adapter's changes count and ``group_p0`` the one that decides which coefficients
    move together, both (rank,). ``verdict`` is None where there was nothing to compare; ``fits`` is False where the
    weight has another shape, ``unchecked`` is True where the weight has no values yet.
    """

    bases: Bases
    origin: Tensor
    group_p0: Tensor
    record: Record | None
    verdict: Verdict | None = None
    fits: bool = True
    unchecked: bool = False


def make_record(weight: Tensor, p0: Tensor, origin: Tensor | None = None) -> Record:
    """The record of a layer: the fingerprint of its weight, p0, and the adapter's origin where that is another."""
    record = {**fingerprint(weight), "p0": encode(p0)}
    if origin is not None and not torch.equal(origin, p0[: len(origin)]):
        record["origin"] = encode(origin)
    return record


def match_base(
    name: str, weight: Tensor, saved: Record | None, *, fan_in_fan_out: bool, present: Bases | None = None
) -> Match:
    """Factor a layer's weight for an adapter and compare it with what the adapter remembers of it.

    Args:
        saved: The adapter's record of this layer; None for a new adapter.
        present: The bases of the layer if it already has adapters; they are not computed again.

    Raises:
        ValueError: The weight cannot be factored, or ``saved`` is not a record.
    """
    if weight.is_meta:
        bases = present or bases_of(name, weight, fan_in_fan_out=fan_in_fan_out)
        if saved is None:
            return Match(bases, bases.p0, bases.p0, None)
        p0 = decode(saved["p0"])
        return Match(bases, decode(saved["origin"] if "origin" in saved else saved["p0"]), p0, saved, unchecked=True)
    if present is not None and present.factored_as is None:
        bases = present
    else:
        bases = bases_of(name, weight, fan_in_fan_out=fan_in_fan_out)
    if saved is None:
        used = present or bases
        return Match(used, used.p0, used.p0, make_record(as_factored(weight, used), used.p0))
    _check_form(name, saved)
    p0 = decode(saved["p0"]).to(weight.device)
    origin = decode(saved["origin"] if "origin" in saved else saved["p0"]).to(weight.device)
    verdict = compare(saved, weight, p0, bases.p0, layer=name, way_on=WAY_ON)
    wanted = verdict.factor_as
    if verdict.kind == "rounded" and wanted is not None:
        if present is None:
            bases = bases_of(name, weight, fan_in_fan_out=fan_in_fan_out, factored_as=wanted)
            return Match(bases, origin, p0, saved)
        if present.factored_as == wanted:
            return Match(present, origin, p0, saved)
    if present is not None and present.factored_as is not None:
        verdict = _other_rounding(name, present)
        return Match(present, origin, present.p0, make_record(weight, bases.p0, origin), verdict)
    if verdict.kind == "equal":
        return Match(bases, origin, p0, saved, verdict)
    if list(saved["shape"]) != list(weight.shape):
        return Match(bases, origin, bases.p0, None, verdict, fits=False)
    return Match(bases, origin, bases.p0, make_record(weight, bases.p0, origin), verdict)


def report(matches: Iterable[Match], *, base_check: str, exact_anyway: bool) -> None:
    """Refuse, warn or stay silent about what comparing all layers found, in one message.

    Args:
        exact_anyway: The adapter brings its bases along, so that last bits of the base weight do not matter.

    Raises:
        ValueError: A layer has other weights and ``base_check`` is "refuse", or another shape, which nothing can mend.
    """
    told = [match for match in matches if match.verdict is not None and match.verdict.message]
    other = [match.verdict for match in told if match.verdict and not match.verdict.accepted]
    if other and (base_check == "refuse" or not all(match.fits for match in told)):
        raise ValueError(f"The adapter does not fit this base model. {_several(other)}")
    shown = other if exact_anyway else [match.verdict for match in told if match.verdict]
    if shown:
        warnings.warn(_several(shown), UserWarning, stacklevel=2)


def _several(verdicts: list[Verdict]) -> str:
    """The first message in full, of the others the layer and the difference."""
    others = []
    for verdict in verdicts[1:6]:
        difference = "" if verdict.p0_difference is None else f" (p0 by {verdict.p0_difference:.1e})"
        others.append(verdict.message.partition(":")[0] + difference)
    if not others:
        return verdicts[0].message
    more = f" and {len(verdicts) - 6} more" if len(verdicts) > 6 else ""
    return f"{verdicts[0].message} Also different: {', '.join(others)}{more}."


def _other_rounding(name: str, present: Bases) -> Verdict:
    return Verdict(
        "rounded",
        f"{name}: another adapter of this layer was trained on its weight rounded to {present.factored_as}, and "
        "adapters of a layer share its bases. Expect the change by the adapter that is being loaded to be off by a few "
        "percent; to be exact, load it into a model of its own.",
    )


def as_factored(weight: Tensor, bases: Bases) -> Tensor:
    """The weight as it was factored: as it is, or rounded to the dtype in which the layer's adapters were trained."""
    return weight if bases.factored_as is None else weight.detach().to(bases.factored_as)


def _check_form(name: str, saved: Mapping[str, Any]) -> None:
    if "p0" not in saved:
        raise ValueError(
            f"{name}: the adapter's base_record has no p0; it has {', '.join(sorted(saved)) or 'nothing'}."
        )


def encode(p0: Tensor) -> str:
    """Coefficients as text, bit for bit: the dtype, a colon, and little-endian bytes in base 64."""
    values = p0.detach().cpu().numpy()
    little = values.astype(values.dtype.newbyteorder("<"))
    return f"{values.dtype.name}:{base64.b64encode(little.tobytes()).decode('ascii')}"


def decode(text: str) -> Tensor:
    """Undo `encode`.

    Raises:
        ValueError: The text is not what `encode` writes.
    """
    dtype, _, payload = str(text).partition(":")
    try:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"unknown dtype {dtype!r}")
        values = np.frombuffer(base64.b64decode(payload, validate=True), dtype=np.dtype(dtype).newbyteorder("<"))
    except ValueError as error:
        raise ValueError(
            f"The coefficients p0 in the adapter's base_record cannot be read ({error}). "
            "Was adapter_config.json edited?"
        ) from error
    return torch.from_numpy(values.astype(dtype))
