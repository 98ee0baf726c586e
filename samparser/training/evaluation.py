"""Evaluation loop: scores of a model on a data set, the same on one process as on many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from samparser._memory import SCORING, advising
from samparser.prediction.predictor import SamPredictor
from samparser.prompts import make_prompts
from samparser.sam.lean import lean_decoder
from samparser.scoring import ScoreTable, box_masks, ellipse_masks, score_instances

from .eval_settings import EvalSettings

if TYPE_CHECKING:
    from samparser.data import Sample

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def prompts_for(sample: Sample, index: int, settings: EvalSettings) -> dict[str, Any]:
    """Return the prompts of an image, which depend on the settings, their seed and the image's index only.

    Returns:
        `{"boxes": (N, 4)}` or `{"points": (N, P, 2)}` in the original frame, as `predict` takes them.
    """
    rng = np.random.default_rng([settings.eval_seed, index])
    return make_prompts(sample.instances, sample.size, settings.prompt_settings(), rng)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    processor: Any,
    dataset: Sequence[Sample],
    settings: EvalSettings | None = None,
    *,
    limit: int | None = None,
    tuned: bool | None = None,
    process: tuple[int, int] | None = None,
    progress: bool = True,
) -> ScoreTable:
    """Segment every instance of a data set from its box, or from points on it, and score the masks at original size.

    The mask decoder works as in `samparser.sam.lean_decoder`, so logits equal those of `predict` up to rounding. The
    model is in eval mode meanwhile: other threads may predict with it, but not train it.

    Args:
        model: A model of a SAM family, or a PEFT model around one.
        processor: The model's processor.
        dataset: Samples with instances, see `samparser.data`.
        settings: Kind of prompt, its randomness, chunk size and precision; by default tight boxes in float32.
        limit: Score the first so many images only.
        tuned: Whether masks come from the head that tuning trains, see `SamPredictor`; None: where the model is tuned.
        process: `(rank, world size)` scores every world-size-th image only and returns that part. Not given, the
            processes that `accelerate launch` started share the work and each gets the whole table, which is exactly
            that of one process.
        progress: Show a progress bar (on rank 0).

    Returns:
        One row per instance; `str()` of the table prints all averages with their definitions, the prompt, and in
        SAM 2, EdgeTAM and SAM 3 whose masks they are.

    Raises:
        OutOfMemoryError: The device's memory did not suffice; the message names the settings that need less.
    """
    settings = (settings or EvalSettings()).resolved()
    together = process is None and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together:
        state = PartialState()
        process = (state.process_index, state.num_processes)
    rank, world = process or (0, 1)
    device = next(model.parameters()).device
    autocast: AbstractContextManager[Any] = nullcontext()
    if settings.eval_precision != "fp32":
        autocast = torch.autocast(device.type, dtype=_AUTOCAST[settings.eval_precision])
    was_training = model.training
    model.eval()
    rows: list[Any] = []
    indices: Any = range(rank, min(len(dataset), limit or len(dataset)), world)
    if progress and rank == 0:
        from tqdm.auto import tqdm

        indices = tqdm(indices, desc="scoring", unit="image", leave=False, dynamic_ncols=True)
    predictor = SamPredictor(model, processor, tuned=tuned)
    try:
        with autocast, advising(SCORING), lean_decoder(model):
            for index in indices:
                sample = dataset[index]
                prompts = prompts_for(sample, index, settings)
                predictor.set_image(sample.image)
                rows.extend(score_instances(sample, predictor.predict(batch=settings.eval_batch, **prompts)))
    finally:
        model.train(was_training)
    if together:
        rows = gather_object(rows)
    classes = getattr(dataset, "classes", None)
    return ScoreTable(rows, classes=classes, prompt=settings.described(), masks=predictor.masks)


def evaluate_baselines(
    dataset: Sequence[Sample], settings: EvalSettings | None = None, *, limit: int | None = None
) -> dict[str, ScoreTable]:
    """Score two answers that need no model, given the boxes that `evaluate` gives the model.

    A model that is not above them adds nothing to its prompt, however high its scores look.

    Returns:
        `"box"`, the box itself as the mask, and `"ellipse"`, the ellipse inscribed in it.

    Raises:
        ValueError: The settings ask for points, from which no mask can be made without a model.
    """
    settings = (settings or EvalSettings()).resolved()
    if settings.eval_prompt == "point":
        raise ValueError("The baselines fill the box of an instance, and eval_prompt is 'point'; give eval_prompt box.")
    rows: dict[str, list[Any]] = {"box": [], "ellipse": []}
    for index in range(min(len(dataset), limit or len(dataset))):
        sample = dataset[index]
        boxes = prompts_for(sample, index, settings)["boxes"]
        rows["box"] += score_instances(sample, box_masks(boxes, sample.size))
        rows["ellipse"] += score_instances(sample, ellipse_masks(boxes, sample.size))
    classes = getattr(dataset, "classes", None)
    return {name: ScoreTable(own, classes=classes, prompt=settings.described()) for name, own in rows.items()}
