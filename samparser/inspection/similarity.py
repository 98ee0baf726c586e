"""Similarity of adapters: the cosine between their changes of the weights, layer by layer and in all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from samparser.tuner import SVDCoefficientLayer


@dataclass(frozen=True)
class Similarity:
    """Cosines between adapters.

    Args:
        adapters: Their names; rows and columns of the matrices are in this order.
        layers: By the name of each adapted layer, and of each module that an adapter trained in full, the cosines,
            (n, n). 0 where one of the two changes nothing there.
        total: The cosines over all adapted layers together, without modules that were trained in full.
    """

    adapters: tuple[str, ...]
    layers: dict[str, list[list[float]]]
    total: list[list[float]]

    def __str__(self) -> str:
        """Write the cosines over all layers as a square, and those of each layer for each pair of adapters."""
        width = max(8, *map(len, self.adapters))
        lines = ["cosine, all layers".ljust(width) + "".join(f"  {name:>{width}}" for name in self.adapters)]
        left = len(lines[0]) - len(self.adapters) * (width + 2)
        for name, row in zip(self.adapters, self.total, strict=True):
            lines.append(name.ljust(left) + "".join(f"  {value:>{width}.3f}" for value in row))
        pairs = [(i, j) for i in range(len(self.adapters)) for j in range(i)]
        if pairs and len(self.layers) > 1:
            longest = max(map(len, self.layers))
            titles = [f"{self.adapters[j]} . {self.adapters[i]}" for i, j in pairs]
            lines += ["", "by layer".ljust(longest) + "".join(f"  {title}" for title in titles)]
            for layer, square in self.layers.items():
                cells = (f"  {square[i][j]:>{len(t)}.3f}" for (i, j), t in zip(pairs, titles, strict=True))
                lines.append(layer.ljust(longest) + "".join(cells))
        return "\n".join(lines)


@torch.no_grad()
def similarity(model: nn.Module, adapters: Sequence[str]) -> Similarity:
    """Compare the changes of the weights that adapters make, at their present scaling.

    The changes are formed and multiplied as they are, so adapters along different directions, with and without an
    expansion, of different ranks or with bases of their own compare exactly. A layer that one of them does not change
    counts as a change of zero there.

    Args:
        model: A model with adapters of coefficients.
        adapters: Two names or more; one gives the cosine of 1 with itself.

    Raises:
        ValueError: The model has no such adapter, or a name occurs twice.
    """
    names = list(adapters)
    known = {name for module in model.modules() if isinstance(module, SVDCoefficientLayer) for name in module.states}
    unknown = sorted(set(names) - known)
    if unknown or not names:
        raise ValueError(f"There is no adapter {unknown[0] if unknown else names!r}; there are {sorted(known)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"adapters names one twice: {names}.")
    total, layers = torch.zeros(len(names), len(names), dtype=torch.float64), {}
    for name, changes in _changes_of_layers(model, names):
        products = _products(changes, names)
        total += products
        layers[name] = _cosines(products)
    for name, changes in changes_of_modules(model, names):
        layers[name] = _cosines(_products(changes, names))
    return Similarity(tuple(names), layers, _cosines(total))


def _changes_of_layers(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for module in model.modules():
        if isinstance(module, SVDCoefficientLayer) and (present := module.present(names)):
            yield module.layer_name, {name: module.get_delta_weight(name).flatten() for name in present}


def changes_of_modules(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give the changes of modules that were trained in full, by the module's name, as long vectors by the adapter's."""
    for path, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        present = [name for name in names if name in wrapper.modules_to_save]
        base = wrapper.original_module.state_dict()
        changes = {}
        for name in present:
            copy = wrapper.modules_to_save[name].state_dict()
            parts = [(copy[key] - start).flatten().float() for key, start in base.items() if start.is_floating_point()]
            changes[name] = torch.cat(parts)
        if changes:
            yield path.removeprefix("base_model.model."), changes


def _products(changes: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    products = torch.zeros(len(names), len(names), dtype=torch.float64)
    rows = {name: change.double() for name, change in changes.items()}
    for i, first in enumerate(names):
        for j, second in enumerate(names[: i + 1]):
            if first in rows and second in rows:
                products[i, j] = products[j, i] = float(rows[first] @ rows[second])
    return products


def _cosines(products: Tensor) -> list[list[float]]:
    lengths = products.diagonal().sqrt()
    lengths = torch.where(lengths > 0, lengths, math.inf)
    return (products / lengths[:, None] / lengths).clamp(-1, 1).tolist()
