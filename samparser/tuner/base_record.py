"""Base record: what an adapter remembers of the weights it was trained on, and whether it belongs to those at hand.

The record of a layer is kept in the adapter's configuration: there it is known before anything is injected, whichever
way the adapter is loaded. It is a small JSON-able dictionary, about 250 bytes and p0:

- `shape` and `dtype` of the weight;
- `sha256` of its *values*, read in the dtype in which they are factored (`value_hash`);
- `rounded`, the same hash after rounding to narrower dtypes, by which a rounded copy of the weight is recognised;
- `probe`, four numbers `a_k^T W b_k` with fixed vectors, from which the size of a difference is estimated when the
  hashes only say that there is one. Equal singular values are no proof: a permuted or transposed weight has the same;
- `p0`, and `origin` where the adapter's changes count from another one.

`match_base` compares a record with a weight; `report` refuses, warns or stays silent.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samparser._untrusted import fits, shown
from samparser._words import shortened

from .bases import as_factored, bases_of, value_hash
from .factors import Factors

Record = dict[str, Any]
Kind = Literal["new", "unchecked", "equal", "rounded", "close", "other", "reshaped"]

P0_TOLERANCE = 1e-5
"""Largest difference of p0, and estimated difference of the weight, that counts as noise in the last bits."""

WAY_ON = (
    "read the adapter's configuration with SVDCoefficientConfig.from_pretrained, set its base_check to 'warn' and pass "
    "it as config= to PeftModel.from_pretrained (load_model: check_base=False; command line: --check_base false)"
)

_ROUNDINGS = (torch.float32, torch.float16, torch.bfloat16)
_PROBES = 4
_FORM = {"p0": str, "shape": list[int], "dtype": str, "sha256": str, "rounded": dict[str, str], "probe": list[float]}


# Records


def make_record(weight: Tensor, p0: Tensor, origin: Tensor | None = None) -> Record:
    """Make the record of a layer: the fingerprint of its weight, p0, and the adapter's origin where that is another."""
    record = {**fingerprint(weight), "p0": encode(p0)}
    if origin is not None and not torch.equal(origin, p0[: len(origin)]):
        record["origin"] = encode(origin)
    return record


def fingerprint(weight: Tensor) -> Record:
    """Take the fingerprint of a layer's weight (any shape, not folded): the record without p0.

    Raises:
        ValueError: The weight is on the meta device and has no values.
    """
    if weight.is_meta:
        raise ValueError(
            f"Cannot take the fingerprint of a weight of shape {tuple(weight.shape)} on the meta device: "
            "load its values first."
        )
    exact = _short_hash(weight)
    rounded = {_name(dtype): _short_hash(weight.to(dtype)) for dtype in _ROUNDINGS if _is_narrower(dtype, weight.dtype)}
    return {
        "shape": list(weight.shape),
        "dtype": _name(weight.dtype),
        "sha256": exact,
        "rounded": {name: value for name, value in rounded.items() if value != exact},
        "probe": [float(f"{value:.10g}") for value in _probe(weight)],
    }


def encode(p0: Tensor) -> str:
    """Write coefficients as text, bit for bit: the dtype, a colon, and little-endian bytes in base 64."""
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


# Comparison


@dataclass(frozen=True)
class Match:
    """A layer's weight beside an adapter's record of it, and what the adapter starts from.

    Args:
        kind: What the comparison found: "new" (nothing to compare), "unchecked" (the weight has no values yet), "equal"
            (the same values), "rounded" (one is the other rounded to a narrower dtype), "close" (differs in the last
            bits only), "other" (other weights), "reshaped" (another shape, which nothing can mend).
        bases: The factors of the weight, which all adapters of the layer share.
        rounded_to: The dtype to which the weight was rounded before it was factored; None where it was not.
        origin: The p0 (k,) from which the adapter's changes count: the one saved with it, or the layer's own.
        group_p0: The p0 (rank,) that decides which coefficients move together.
        record: What the adapter remembers of the weight from here on; None where that is not known yet.
        message: What to say of it; empty where there is nothing to warn of.
        p0_difference: `max |p0 now - p0 saved| / max p0 saved`; None where it was not needed.
        weight_difference: An estimate of the norm of the weights' difference over the norm of the weight; or None.
    """

    kind: Kind
    bases: Factors
    rounded_to: torch.dtype | None
    origin: Tensor
    group_p0: Tensor
    record: Record | None
    message: str = ""
    p0_difference: float | None = None
    weight_difference: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether an adapter may be loaded without being told to."""
        return self.kind not in ("other", "reshaped")


def match_base(
    name: str,
    weight: Tensor,
    saved: Record | None,
    *,
    fan_in_fan_out: bool,
    present: Factors | None = None,
    rounded_to: torch.dtype | None = None,
) -> Match:
    """Factor a layer's weight for an adapter and compare it with what the adapter remembers of it.

    A layer has one set of bases, so those that are present stay, whatever the new adapter would need:

    | weight, compared with the record             | bases             | origin | groups from | record |
    |----------------------------------------------|-------------------|--------|-------------|--------|
    | has no values, no record                     | shapes only       | p0     | p0          | none   |
    | has no values                                | shapes only       | saved  | saved p0    | saved  |
    | no record: a new adapter                     | of the weight     | p0     | p0          | new    |
    | another shape ("reshaped")                   | of the weight     | saved  | p0 now      | none   |
    | equal                                        | of the weight     | saved  | saved p0    | saved  |
    | finer than in training ("rounded"), silent   | of it, so rounded | saved  | saved p0    | saved  |
    | rounded since, close, other                  | of the weight     | saved  | p0 now      | new    |
    | any, but the present bases are of a rounding | the present ones  | saved  | p0 now      | new    |

    Args:
        name: The layer's name, for messages.
        weight: Its weight, without what is merged into it.
        saved: The adapter's record of this layer; None for a new adapter.
        fan_in_fan_out: The weight is stored as (in, out).
        present: The bases of the layer if it already has adapters; they are not computed again.
        rounded_to: The dtype to which the weight was rounded before `present` were computed.

    Raises:
        ValueError: The weight cannot be factored, or `saved` is not a record.
    """
    if saved is not None:
        check_record(name, saved)
        p0 = decode(saved["p0"]).to("cpu" if weight.is_meta else weight.device)
        origin = decode(saved["origin"]).to(p0.device) if "origin" in saved else p0
    used = present or bases_of(name, weight, fan_in_fan_out=fan_in_fan_out)
    if weight.is_meta:
        new = Match("new", used, None, used.p, used.p, None)
        return new if saved is None else replace(new, kind="unchecked", origin=origin, group_p0=p0, record=saved)
    if saved is None:
        return Match("new", used, rounded_to, used.p, used.p, make_record(as_factored(weight, rounded_to), used.p))

    # What is compared, and remembered of another weight, is the weight as it is, not a rounding of it.
    exact = used if rounded_to is None else bases_of(name, weight, fan_in_fan_out=fan_in_fan_out)
    found = _compare(name, weight, saved, p0, Match("equal", used, rounded_to, origin, used.p, None), exact.p)
    if found.kind == "reshaped":
        return found
    trained_on = _trained_rounding(saved, weight) if found.kind == "rounded" else None
    if trained_on is not None and present is None:
        bases = bases_of(name, weight, fan_in_fan_out=fan_in_fan_out, rounded_to=trained_on)
        return Match("rounded", bases, trained_on, origin, p0, saved)
    if trained_on is not None and trained_on == rounded_to:
        return Match("rounded", used, rounded_to, origin, p0, saved)
    if found.kind == "equal" and rounded_to is None:
        return replace(found, group_p0=p0, record=saved)
    found = replace(found, record=make_record(weight, exact.p, origin))
    return replace(found, kind="rounded", message=_shared(name, rounded_to)) if rounded_to and found.accepted else found


def check_record(layer: str, record: Record) -> None:
    """Check that the record of a layer, as a file holds it, is one that `make_record` can have made.

    Raises:
        ValueError: A part is missing or is of another kind.
    """
    where = f"{layer}: the adapter's base_record"
    missing = sorted(set(_FORM) - set(record))
    if missing:
        what = "has no p0" if "p0" in missing else f"lacks {', '.join(missing)}"
        raise ValueError(
            f"{where} {what}; it has {', '.join(sorted(record)) or 'nothing'}. Was "
            "adapter_config.json edited, or saved by another version?"
        )
    wrong = [name for name, kind in _FORM.items() if not fits(record[name], kind)]
    if not wrong:
        wrong += ["shape"] if len(record["shape"]) < 2 or min(record["shape"]) < 1 else []
        wrong += [] if all(abs(number) < 1e300 for number in record["probe"]) else ["probe"]
    if wrong:
        raise ValueError(f"{where} has {wrong[0]}={shown(record[wrong[0]])}, which is not what a record holds there.")
    p0, origin = decode(record["p0"]), decode(str(record.get("origin", record["p0"])))
    if not len(origin) or len(origin) > len(p0):
        raise ValueError(f"{where} has {len(origin)} coefficients as its origin, but {len(p0)} as its p0.")


def _compare(layer: str, weight: Tensor, saved: Record, p0: Tensor, start: Match, now: Tensor) -> Match:
    """Fill in what comparing the weight, with singular values `now`, finds; the first case that holds decides."""
    if list(weight.shape) != list(saved["shape"]) or len(p0) != len(now):
        return replace(
            start,
            kind="reshaped",
            message=f"{layer}: the adapter was trained on a weight of shape {tuple(saved['shape'])} with {len(p0)} "
            f"coefficients, this base model has {tuple(weight.shape)} with {len(now)}. It belongs to another "
            "architecture or size of model; load the base model it was trained on.",
        )
    hashed, tolerance = _short_hash(weight), P0_TOLERANCE
    p0_difference, weight_difference = _p0_difference(p0, now), 0.0
    if hashed == saved["sha256"]:
        kind, message = _same_values(layer, p0_difference, tolerance)
    else:
        weight_difference = _weight_difference(saved["probe"], weight, p0)
        figures = (
            f"p0 differs by {p0_difference:.1e} of the largest singular value and the weight by about "
            f"{weight_difference:.1e} of its norm (tolerance {tolerance:.0e})"
        )
        rounding = _rounding(layer, saved, weight, hashed)
        if rounding:
            kind, message = "rounded", rounding
        elif p0_difference <= tolerance and weight_difference <= tolerance:
            kind, message = "close", _CLOSE.format(layer=layer, figures=figures)
        else:
            guess = _SAME_SPECTRUM if p0_difference <= tolerance else _OTHER_SPECTRUM
            kind, message = "other", _OTHER.format(layer=layer, figures=figures, guess=guess, way_on=WAY_ON)
    return replace(start, kind=kind, message=message, p0_difference=p0_difference, weight_difference=weight_difference)


def _same_values(layer: str, p0_difference: float, tolerance: float) -> tuple[Kind, str]:
    if p0_difference <= tolerance:
        return "equal", ""
    return "other", (
        f"{layer}: the base weight is the one the adapter was trained on, but the p0 in the adapter's file differs "
        f"from its singular values by {p0_difference:.1e} of the largest (tolerance {tolerance:.0e}). The file is "
        f"damaged or its tensors were mixed up; save it again, or {WAY_ON}."
    )


_CLOSE = (
    "{layer}: this base weight is not bit for bit the one the adapter was trained on: {figures}. That is noise in the "
    "last bits, which can turn the bases of close singular values; compare the scores."
)
_OTHER = (
    "{layer}: this base weight is not the one the adapter was trained on: {figures}. {guess} Load the base model the "
    "adapter was trained on; to use the coefficients on this one all the same, {way_on}."
)
_SAME_SPECTRUM = "The singular values agree but the entries do not: are channels permuted, or is the weight transposed?"
_OTHER_SPECTRUM = "It belongs to another checkpoint, or the base was tuned, merged or quantised since."


def _rounding(layer: str, saved: Record, weight: Tensor, hashed: str) -> str:
    """What to say where one weight is the other rounded to a narrower dtype; empty where it is not."""
    then = saved["dtype"]
    if _trained_rounding(saved, weight) is not None:
        return (
            f"{layer}: the adapter was trained on this weight rounded to {then}. Its bases are exact only if the "
            f"weight is rounded to {then} before it is factored; without that, expect the layer's change to be off by "
            f"{_expected_error(then)}."
        )
    for now, rounded in saved["rounded"].items():
        if rounded == hashed:
            return (
                f"{layer}: the adapter was trained on this weight in {then}, and this base model holds it rounded to "
                f"{now}. The bases differ, so expect the layer's change to be off by {_expected_error(now)}. To be "
                f"exact, load the base model in {then} (dtype=torch.{then}), load the adapter, and round afterwards."
            )
    return ""


def _trained_rounding(saved: Record, weight: Tensor) -> torch.dtype | None:
    """The dtype to which this weight has to be rounded to be the one of the training; None where none does it."""
    trained = getattr(torch, saved["dtype"], None)
    if trained not in _ROUNDINGS or not _is_narrower(trained, weight.dtype):
        return None
    return trained if _short_hash(weight.to(trained)) == saved["sha256"] else None


def _shared(layer: str, rounded_to: torch.dtype) -> str:
    return (
        f"{layer}: another adapter of this layer was trained on its weight rounded to {rounded_to}, and adapters of a "
        "layer share its bases. Expect the change by the adapter that is being loaded to be off by a few percent; to "
        "be exact, load it into a model of its own."
    )


def _expected_error(dtype: str) -> str:
    """Measured by examples/determinism.py on trained-like and random spectra; see docs/determinism.md."""
    return {"bfloat16": "0.3 to 10 %", "float16": "0.05 to 4 %"}.get(dtype, "up to 0.1 %")


# Report


def report(matches: Iterable[Match], *, base_check: str, exact_anyway: bool) -> None:
    """Refuse, warn or stay silent about what comparing all layers found, in one message.

    Args:
        matches: What was found, a layer each.
        base_check: "refuse" or "warn": what to do about other weights.
        exact_anyway: The adapter brings its bases along, so that last bits of the base weight do not matter.

    Raises:
        ValueError: A layer has other weights and `base_check` is "refuse", or another shape, which nothing can mend.
    """
    told = [match for match in matches if match.message]
    other = [match for match in told if not match.accepted]
    if other and (base_check == "refuse" or any(match.kind == "reshaped" for match in other)):
        raise ValueError(f"The adapter does not fit this base model. {_several(other)}")
    shown = other if exact_anyway else told
    if shown:
        warnings.warn(_several(shown), UserWarning, stacklevel=2)


def _several(matches: list[Match]) -> str:
    """The first message in full, of the others the layer and the difference."""
    figures = ["" if m.p0_difference is None else f" (p0 by {m.p0_difference:.1e})" for m in matches]
    others = [match.message.partition(":")[0] + figure for match, figure in zip(matches, figures, strict=True)][1:]
    return matches[0].message + (f" Also different: {shortened(others)}." if others else "")


# Figures


def _p0_difference(saved: Tensor, now: Tensor) -> float:
    saved, now = (p0.detach().to("cpu", torch.float64) for p0 in (saved, now))
    difference, largest = (saved - now).abs().max().item(), saved.max().item()
    if difference == 0:
        return 0.0
    # NaN in the file stays NaN, which no tolerance accepts.
    return difference / largest if largest != 0 else float("inf")


def _probe(weight: Tensor) -> list[float]:
    matrix = weight.detach().flatten(1).to("cpu", torch.float64) if weight.ndim > 1 else weight.detach()[None].double()
    rows, columns = (torch.arange(1, size + 1, dtype=torch.float64) for size in matrix.shape)
    return [float(torch.cos(k * rows) @ matrix @ torch.cos(k * columns + 1)) for k in range(1, _PROBES + 1)]


def _weight_difference(probe: list[float], weight: Tensor, p0: Tensor) -> float:
    """Estimate of ||W - W saved|| / ||W saved||, right within a factor of about two.

    For a difference D with entries of random sign, the mean of (a^T D b)^2 is ||D||^2 / 4, since a cosine's mean square
    is a half.
    """
    then, now = (torch.tensor(values, dtype=torch.float64) for values in (probe, _probe(weight)))
    difference, size = 2 * (then - now).square().mean().sqrt().item(), p0.detach().double().norm().item()
    # Ten digits of the probe are kept.
    if difference <= 1e-9 * then.abs().max().item():
        return 0.0
    return difference / size if size != 0 else float("inf")


def _short_hash(weight: Tensor) -> str:
    """64 bits: this tells models apart, it does not guard against forgery."""
    return value_hash(weight)[:16]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether rounding from `than` to `dtype` can change values. float16 and bfloat16 round each other."""
    return dtype != than and torch.finfo(dtype).bits <= torch.finfo(than).bits
