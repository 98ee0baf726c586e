"""The lean way of the mask decoder in training steps from features, in every family."""

from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedConfig

from samparser.features.from_features import taking_features
from samparser.sam import family_of, lean_decoder

from .measure import Run, alternate, cell, device, peak_bytes, table
from .models import make_batch, make_samples, training_step
from .published import random_model
from .steps import MIB, coefficients_and_decoder

PLAIN, LEAN = "plain", "lean"


def measure_lean(
    configs: Mapping[str, Callable[[], PreTrainedConfig]], rounds: int, instances: Sequence[int] = (1, 10)
) -> str:
    """Time and memory of a step from features in memory, with the lean decoder over the plain one."""
    rows = [
        [name, str(boxes), *_one(config(), boxes, rounds)] for name, config in configs.items() for boxes in instances
    ]
    return (
        "Coefficients of the neck and mask decoder, features in memory, one image, forward, loss at input size, "
        "backward, Adam; memory is the peak of tensors above model and optimizer:\n\n"
        + table(["model", "boxes", "lean / plain", "plain", "memory, plain", "memory, lean"], rows)
    )


def _one(config: PreTrainedConfig, boxes: int, rounds: int) -> list[str]:
    plain_model = random_model(config).to(device())
    family = family_of(plain_model)
    shapes = family.feature_shapes(config)
    (sample,) = make_samples(1, family.frame(config).size, boxes)
    model = coefficients_and_decoder(plain_model).train()
    step = training_step(model, tuple(torch.randn(1, *shape) for shape in shapes), make_batch(sample))

    def lean_step() -> None:
        with lean_decoder(model):
            step()

    runs: dict[str, Run] = {PLAIN: step, LEAN: lean_step}
    with taking_features(model, family, shapes, torch.float32, after_neck=False):
        memory = [f"{peak_bytes(run) / MIB:.0f} MiB" for run in runs.values()]
        timings = alternate(runs, rounds, baseline=PLAIN, warm=False)
    return [cell(timings[LEAN]), f"{timings[PLAIN].seconds:.3g} s", *memory]
