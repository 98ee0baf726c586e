"""Initialising an expansion: one pass over training data that chooses the directions of an adapter's terms.

Called between `get_peft_model` and training, as PEFT's `initialize_lora_eva_weights` is. Nothing is trained: the mean
gradient of each adapted weight is taken at the model as it stands, directions are chosen by it, and on batches held out
from the choice the share of the signal is measured that the adapter's numbers see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .expansion import Chosen, Expansion, Sight, choose, share_of
from .factors import Factors, coefficient_groups, fold
from .layer import SVDCoefficientLayer

Batch = Mapping[str, Any] | Callable[[nn.Module], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class LayerReport:
    """What was chosen in one layer, and what its numbers see.

    Args:
        name: The layer.
        numbers: How many numbers the adapter trains there, coefficients and terms.
        terms: How many of them are terms of the expansion.
        chance: The share that as many random directions would see.
        coefficients: The share of the first-order signal that the coefficients see alone; None where the held-out
            batches agree on no signal.
        share: The share that all of the numbers see.
    """

    name: str
    numbers: int
    terms: int
    chance: float
    coefficients: float | None
    share: float | None


@dataclass(frozen=True)
class ExpansionReport:
    """What `initialize_expansion` found: a row for each layer, the batches that it took, and the shares in all."""

    layers: tuple[LayerReport, ...]
    chosen_on: int
    held_out: int
    total: LayerReport

    def __str__(self) -> str:
        """Write a table of the shares, in per cent."""
        width = max(len(row.name) for row in (*self.layers, self.total))
        title = "share of the gradient's signal, % of it"
        lines = [f"{'':{width}}  {title}", f"{'layer':{width}}  numbers  chance  coefficients  with terms"]
        for row in (*self.layers, self.total):
            alone, share = (_percent(value) for value in (row.coefficients, row.share))
            lines.append(f"{row.name:{width}}  {row.numbers:7}  {_percent(row.chance):>6}  {alone:>12}  {share:>10}")
        return "\n".join([*lines, f"chosen on {self.chosen_on} batches, measured on {self.held_out} others"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def initialize_expansion(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss | None = None,
    *,
    held_out: Iterable[Batch] | None = None,
    adapter_name: str = "default",
    max_batches: int = 64,
    more: bool = False,
    seed: int = 0,
    show: bool = True,
) -> ExpansionReport:
    """Choose the directions of an adapter's expansion by the mean gradient of its layers, and measure what they see.

    Call it after `get_peft_model` and before the optimizer is made: the terms' coefficients are new parameters. The
    model runs in evaluation mode, with the adapters that are active, and is afterwards as it was but for the terms.
    Beside the model one gradient is kept for each adapted layer, in float32. In distributed training, call it before
    the model is wrapped, with the same batches in every process.

    Args:
        model: A model with the adapter, as `get_peft_model` or transformers' `add_adapter` gives.
        batches: Training data. A batch is whatever `loss` takes; without `loss`, keyword arguments of the model, whose
            output has a `loss`, or a function that is called with the model and returns the loss.
        loss: Called as `loss(model, batch)`; returns a number with a graph, the mean over the batch.
        held_out: Batches that measure the share. None holds the second half of `batches` out, so shuffle them if they
            are sorted; iterables without a length are then read into memory first.
        adapter_name: The adapter.
        max_batches: Most batches to take of `batches`, and of `held_out`.
        more: Choose further terms for an adapter that has some, by the gradient that is left; theirs stay as trained.
            Make the optimizer anew afterwards.
        seed: Draws random directions, for `expansion="random"`.
        show: Print the report.

    Returns:
        What was chosen; `print` shows it as a table. The shares of each layer are saved with the adapter.

    Raises:
        ValueError: The adapter has no expansion, or has its terms already and `more` is not set; there are fewer than
            two batches; a gradient is zero or not finite; a layer does not allow so many terms, or none allows any.
            Nothing has changed.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig, initialize_expansion
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> config = SVDCoefficientConfig(target_modules=["0"], expansion="pairs", expansion_rank=4)
        >>> model = get_peft_model(net, config)
        >>> batches = [{"x": torch.randn(16, 8), "y": torch.randn(16, 2)} for _ in range(4)]
        >>> def loss(model, batch):
        ...     return torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
        >>> report = initialize_expansion(model, batches, loss, show=False)
        >>> report.layers[0].name, report.layers[0].numbers, report.chosen_on, report.held_out
        ('0', 10, 2, 2)
    """
    layers = _layers_to_expand(model, adapter_name, more)
    first, second = _halves(batches, held_out, max_batches)
    with _probes(model, layers):
        chosen_on = 0
        for batch in first:
            _loss_of(model, batch, loss).backward(inputs=_graph_inputs(layers))
            chosen_on += 1
        if not chosen_on:
            raise ValueError("There is no batch to choose directions by: `batches` is empty.")
        parts = {name: _Part.choose(layer, adapter_name, chosen_on, seed + i) for i, (name, layer) in enumerate(layers)}
        if not any(len(part.chosen.rows) or part.chosen.a is not None for part in parts.values()):
            raise ValueError(
                f"No term can be chosen for adapter {adapter_name!r}: no layer has two bases that every factorisation "
                "gives and that are not paired yet. Bases of equal or zero singular values, as orthogonal weights "
                "have, are never paired. Use expansion='gradient', which stores its directions."
            )
        measured = 0
        for batch in second:
            _loss_of(model, batch, loss).backward(inputs=_graph_inputs(layers))
            for part in parts.values():
                part.measure()
            measured += 1
        if not measured:
            raise ValueError(
                "There is no batch to measure the choice on: give at least two batches, or some as held_out."
            )
    rows = tuple(part.write(measured) for part in parts.values())
    report = ExpansionReport(rows, chosen_on, measured, _total(list(parts.values()), rows))
    if show:
        print(report)
    return report


class _Part:
    """A layer in the pass: its mean gradient, the directions chosen by it, and what held-out batches see of it."""

    def __init__(self, layer: SVDCoefficientLayer, adapter: str, gradient: Tensor, chosen: Chosen) -> None:
        self.layer, self.adapter, self.gradient, self.chosen = layer, adapter, gradient, chosen
        state, bases = layer.states[adapter], layer.bases
        self.before = state.expansion or Expansion(1.0, chosen.rows[:0], chosen.columns[:0])
        left, right = chosen.factors(bases)
        for term in _terms(layer, adapter):
            left = torch.cat([left, term.u.to(left.dtype)], 1)
            right = torch.cat([right, term.vh.to(right.dtype)])
        self.sight = Sight(bases, _trained(layer, adapter), (left, right))
        self.mine = self.sight.read(gradient)
        self.theirs = [torch.zeros_like(part) for part in self.mine]
        self.signal = 0.0

    @classmethod
    def choose(cls, layer: SVDCoefficientLayer, adapter: str, batches: int, seed: int) -> _Part:
        """Choose directions by the gradient that the layer's probe has gathered over the batches."""
        gradient = _take_gradient(layer) / batches
        state = layer.states[adapter]
        assert state.wanted is not None
        try:
            chosen = choose(
                state.wanted,
                gradient,
                layer.bases,
                coefficient_groups(layer.bases.p),
                _trained(layer, adapter),
                taken=state.expansion,
                seed=seed,
            )
        except ValueError as error:
            raise ValueError(f"Cannot choose the directions of {layer.layer_name}: {error}") from error
        return cls(layer, adapter, gradient, chosen)

    def measure(self) -> None:
        """Compare the gradient of one held-out batch with the one that directions were chosen by."""
        other = _take_gradient(self.layer)
        self.signal += float((self.gradient.double() * other.double()).sum())
        for total, part in zip(self.theirs, self.sight.read(other), strict=True):
            total += part

    def products(self) -> tuple[float, float, float]:
        """The signal, and how much of it the coefficients and all numbers see, summed over the held-out batches."""
        return self.signal, *self.sight.products(self.mine, (self.theirs[0], self.theirs[1]))

    def write(self, measured: int) -> LayerReport:
        """Give the adapter its terms, and report."""
        layer, state, chosen = self.layer, self.layer.states[self.adapter], self.chosen
        assert state.wanted is not None
        signal, coefficients, everything = self.products()
        shares = share_of(coefficients, signal), share_of(everything, signal)
        # The unit of d is p0; a weight of zeros has none.
        scale = (float(layer.bases.p.double().mean()) if state.relative else 1.0) or 1.0
        stored = self.before.stored + (0 if chosen.a is None else chosen.a.shape[1])
        expansion = Expansion(
            scale if state.expansion is None else self.before.scale,
            torch.cat([self.before.rows, chosen.rows]),
            torch.cat([self.before.columns, chosen.columns]),
            stored,
            {"coefficients": shares[0], "all": shares[1]},
        )
        trained = self.adapter in layer.active_adapters
        if self.adapter in layer.svd_coefficient_c:
            trained = layer.svd_coefficient_c[self.adapter].requires_grad
        layer.set_expansion(self.adapter, expansion, state.wanted.dtype, chosen)
        if expansion.count:
            layer.svd_coefficient_c[self.adapter].requires_grad_(trained)
        numbers = expansion.count + (self.mine[0].numel())
        return LayerReport(
            layer.layer_name, numbers, expansion.count, min(1.0, numbers / self.gradient.numel()), *shares
        )


def _total(parts: list[_Part], rows: tuple[LayerReport, ...]) -> LayerReport:
    signal, coefficients, everything = (
        sum(values) for values in zip(*(part.products() for part in parts), strict=True)
    )
    numbers, size = sum(row.numbers for row in rows), sum(part.gradient.numel() for part in parts)
    terms = sum(row.terms for row in rows)
    shares = share_of(coefficients, signal), share_of(everything, signal)
    return LayerReport("all together", numbers, terms, min(1.0, numbers / size), *shares)


def _trained(layer: SVDCoefficientLayer, adapter: str) -> Tensor | None:
    """The groups of the coefficients that an adapter trains; None where it trains none."""
    state = layer.states[adapter]
    if not state.trained & {"svd_coefficient_p", "svd_coefficient_d"}:
        return None
    return torch.arange(state.rank, device=layer.bases.u.device) if state.groups is None else state.groups


@torch.no_grad()
def _terms(layer: SVDCoefficientLayer, adapter: str) -> list[Factors]:
    change = layer.change_by([adapter])
    return [*change.pairs, *change.beside]


# The pass


def _layers_to_expand(model: nn.Module, adapter: str, more: bool) -> list[tuple[str, SVDCoefficientLayer]]:
    """The layers that are to get terms, all that can be refused being refused."""
    present = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
    known = sorted({name for layer in present for name in layer.states})
    if adapter not in known:
        raise ValueError(f"The model has no SVD coefficient adapter {adapter!r}; it has {known or 'none'}.")
    layers = [(module.layer_name, module) for module in present if adapter in module.states]
    layers = [(name, layer) for name, layer in layers if layer.states[adapter].wanted is not None]
    if not layers:
        raise ValueError(
            f"Adapter {adapter!r} has no expansion to choose directions for: make it with "
            "SVDCoefficientConfig(expansion='pairs', ...)."
        )
    for name, layer in layers:
        if layer.base_weight.is_meta:
            raise ValueError(f"{name} has no values yet: load the base model before directions are chosen.")
        if layer.merged_adapters or layer._disable_adapters:
            what = "has merged adapters" if layer.merged_adapters else "has its adapters disabled"
            raise ValueError(f"{name} {what}: unmerge or enable them before directions are chosen.")
        if layer.takes_projection:
            raise ValueError(
                f"{name} takes a projection of its input, from a cache of features: directions are chosen by the whole "
                "gradient. Make the pass on the layer's plain input."
            )
        expansion = layer.states[adapter].expansion
        if expansion is not None and not more:
            raise ValueError(
                f"Adapter {adapter!r} has its terms already, {expansion.count} in {name}. To "
                "choose further ones by the gradient that is left, set more=True."
            )
    return layers


def _halves(
    batches: Iterable[Batch], held_out: Iterable[Batch] | None, most: int
) -> tuple[Iterable[Batch], Iterable[Batch]]:
    """The batches to choose by, and those to measure with."""
    if most < 1:
        raise ValueError(f"max_batches={most} has to be at least 1.")
    if held_out is not None:
        return islice(batches, most), islice(held_out, most)
    if not isinstance(batches, Sized):
        batches = list(islice(batches, most))
    count = min(len(batches), most)
    if count < 2:
        raise ValueError(
            f"One half of the batches chooses directions and the other measures them, but there is {count}: give at "
            "least two batches, or some as held_out."
        )
    once = iter(batches)
    return islice(once, count // 2), islice(once, count - count // 2)


def _loss_of(model: nn.Module, batch: Batch, loss: Loss | None) -> Tensor:
    if loss is not None:
        value: Any = loss(model, batch)
    elif callable(batch):
        value = batch(model)
    elif isinstance(batch, Mapping):
        output = model(**batch)
        value = output["loss"] if isinstance(output, Mapping) else getattr(output, "loss", None)
    else:
        raise TypeError(
            f"A batch is a {type(batch).__name__}: without `loss` it has to be keyword arguments of the model, or a "
            "function of the model that returns the loss."
        )
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
        raise ValueError(f"The loss of a batch has to be one number, but it is {what}. Give `loss(model, batch)`.")
    if not value.requires_grad:
        raise ValueError(
            "The loss of a batch does not depend on any adapted layer, or was computed without a graph: does `loss` "
            "detach it, use torch.no_grad, or bypass the model?"
        )
    return value.sum()


def _graph_inputs(layers: list[tuple[str, SVDCoefficientLayer]]) -> list[Tensor]:
    return [layer.gradient_probe for _, layer in layers if layer.gradient_probe is not None]


def _take_gradient(layer: SVDCoefficientLayer) -> Tensor:
    """What the probe has gathered, as a matrix (out, fan_in), and start it anew; zeros where nothing came."""
    probe = layer.gradient_probe
    assert probe is not None
    gathered: Tensor | None = probe.grad
    gradient = torch.zeros(probe.shape, device=probe.device) if gathered is None else gathered
    probe.grad = None
    return fold(gradient, fan_in_fan_out=layer.fan_in_fan_out)


@contextmanager
def _probes(model: nn.Module, layers: list[tuple[str, SVDCoefficientLayer]]) -> Iterator[None]:
    """Let the layers' gradients gather in probes while the model is in evaluation mode; all is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for _, layer in layers:
            # One zero in memory, seen as a weight of them.
            zero = torch.zeros((), dtype=layer.bases.u.dtype, device=layer.base_weight.device)
            layer.gradient_probe = zero.expand(layer.base_weight.shape).requires_grad_(True)
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for _, layer in layers:
            layer.gradient_probe = None
        for module, training in modes:
            module.training = training
