"""What a method costs on paper: trained parameters and multiply-accumulates, counted without weights or data.

One multiply-accumulate (MAC) is one multiplication and one addition; a product of matrices (m, k) and (k, n) has
m k n of them. FLOPs, which torch counts, are twice the MACs. Counted are matrix products, convolutions and attention,
forward or forward and backward; norms, activations and other elementwise work are left out, as usual. torch's counter
runs on the meta device, where it sees the products inside attention that it misses on the CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig

from samparser.sam.families import family_of, family_of_config

from .description import describe
from .factored import factored_form
from .registry import build, get_method, with_placeholders

_FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Cost:
    """Costs of one method on one model; MACs are for one image and one box.

    Attributes:
        method: Its name.
        trained: Trained parameters.
        bytes_on_disk: Size of the file of the trained part.
        forward_macs: The model's forward in training, with whatever the method adds.
        step_macs: Forward and backward of one training step; the forward alone where nothing trains.
        cached_step_macs: The same where the features that enter the neck are cached; None where they change.
        merged_macs: The forward of the model to be deployed: merged, where the method can be.
        form: `"factored"` where layers of coefficients are counted as V, p and U one after another, `"as run"`
            where the model is counted as it is.
    """

    method: str
    trained: int
    bytes_on_disk: int
    forward_macs: int
    step_macs: int
    cached_step_macs: int | None
    merged_macs: int
    form: str


@dataclass(frozen=True)
class ForwardCost:
    """Where the forward of a plain model spends its products, for one image; MACs.

    Attributes:
        before_neck: The image encoder up to what enters its neck. Paid once for an image whose features are kept.
        neck: The neck, and what else stands between features and mask decoder.
        decoder: Prompt encoder and mask decoder, for one box.
        further_box: Each box more.
        feature_bytes: What is kept of an image to leave out the part before the neck, in float16.
    """

    before_neck: int
    neck: int
    decoder: int
    further_box: int
    feature_bytes: int

    @property
    def cached_share(self) -> float:
        """The part of a forward for one box that is left where features are kept."""
        return (self.neck + self.decoder) / (self.before_neck + self.neck + self.decoder)


def meta_model(config: Any = None) -> nn.Module:
    """Build a model without weights, SAM ViT-B where no config is given: no memory, and a tenth of a second.

    Raises:
        TypeError: The config is of no family.
    """
    config = SamConfig() if config is None else config
    with torch.device("meta"):
        return family_of_config(config, "Counting").model_from_config(config)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count all parameters of a model, and those that train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def count_macs(model: nn.Module) -> tuple[int, int]:
    """Count the multiply-accumulates of a model on one image of its full size and one box: of the forward and a step.

    Args:
        model: A model of a family, plain or tuned, on any device. Off the meta device a copy without weights is
            counted. It is counted as it is in training where something trains, and in evaluation where nothing does.

    Returns:
        The MACs of the forward, and those of forward and backward: the gradients of all that trains. Where nothing
        trains the two are the same.
    """
    if not all(parameter.is_meta for parameter in model.parameters()):
        model = copy.deepcopy(model).to("meta")
    trains = count_parameters(model)[1] > 0
    was_training = model.training
    model.train(trains)
    try:
        with _counter() as counter, torch.set_grad_enabled(trains):
            masks = model(pixel_values=_pixels(model), input_boxes=_boxes(1), multimask_output=False).pred_masks
            forward = counter.get_total_flops() // _FLOPS_PER_MAC
            if trains:
                masks.sum().backward()
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops() // _FLOPS_PER_MAC


def method_cost(name: str, options: Mapping[str, Any] | None = None, config: Any = None) -> Cost:
    """Count what one method costs, without weights and without data.

    Layers whose coefficients train are counted as `y = U (p * (V x))`, in whatever form they run: the additional MACs
    of this form are what the paper prints.

    Args:
        name: The method.
        options: Its options; those that are not given take their defaults.
        config: Of the model, of any family; SAM ViT-B at 1024 pixels where none is given.

    Raises:
        ValueError: The method is unknown.
        TypeError: It has no such option, cannot be applied to this family, or the config is of none.
    """
    method = get_method(name)
    plain, _ = count_macs(meta_model(config).requires_grad_(False))
    model = with_placeholders(build(name, meta_model(config), **(options or {})))
    about = describe(model)
    layers = factored_form(model, meta_model(config))
    forward, step = count_macs(layers or model)
    return Cost(
        method=name,
        trained=about.total,
        bytes_on_disk=about.bytes_on_disk,
        forward_macs=forward,
        step_macs=step,
        cached_step_macs=None if method.trains_upstream else step - forward_cost(config).before_neck,
        merged_macs=plain if method.mergeable else forward,
        form="factored" if layers else "as run",
    )


def forward_cost(config: Any = None) -> ForwardCost:
    """Count the parts of a plain model's forward, without weights.

    Args:
        config: Of the model, of any family; SAM ViT-B at 1024 pixels where none is given.

    Raises:
        TypeError: The config is of no family.
    """
    model = meta_model(config).requires_grad_(False)
    family = family_of(model)
    with torch.no_grad():
        before, features = _counted(lambda: family.encode(model, _pixels(model)))
        neck, embedded = _counted(lambda: family.embed(model, features))
        one_box, _ = _counted(lambda: family.decode(model, embedded, {"input_boxes": _boxes(1)}))
        two_boxes, _ = _counted(lambda: family.decode(model, embedded, {"input_boxes": _boxes(2)}))
    return ForwardCost(
        before_neck=before,
        neck=neck,
        decoder=one_box,
        further_box=two_boxes - one_box,
        feature_bytes=sum(2 * feature.numel() for feature in features),
    )


def _pixels(model: nn.Module) -> Tensor:
    size = family_of(model, "Counting").frame(model).size
    return torch.empty(1, 3, size, size, device="meta")


def _boxes(count: int) -> Tensor:
    return torch.empty(1, count, 4, device="meta")


def _counted(run: Callable[[], Any]) -> tuple[int, Any]:
    with _counter() as counter:
        result = run()
    return counter.get_total_flops() // _FLOPS_PER_MAC, result


def _counter() -> FlopCounterMode:
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
    )


def _convolution_backward_flops(
    grad_shape: list[int],
    x_shape: list[int],
    weight_shape: list[int],
    bias_sizes: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    output_mask: list[bool],
    out_shape: object = None,
) -> int:
    """Count the FLOPs of the gradients of a convolution: each of the two takes as many products as the forward.

    torch's own formula for the weight's gradient leaves the groups out, which makes a depthwise convolution 192
    channels wide 192 times as expensive as it is.
    """
    positions = math.prod((x_shape if transposed else grad_shape)[2:])
    products = x_shape[0] * positions * math.prod(weight_shape)
    return _FLOPS_PER_MAC * products * (bool(output_mask[0]) + bool(output_mask[1]))
