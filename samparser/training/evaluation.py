"""Scores of a model on a data set, the same on one process as on many."""

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
from samparser.prediction.predictor import predict
from samparser.prompts.coordinates import jitter_boxes
from samparser.sam.lean import lean_decoder
from samparser.scoring.baselines import box_masks, ellipse_masks
from samparser.scoring.table import ScoreTable, score_instances

from .settings import EvalSettings

if TYPE_CHECKING:
    from samparser.data import Sample

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def prompts_for(sample: "Sample", index: int, settings: EvalSettings) -> np.ndarray:
    """The box prompts of an image: tight boxes, or jittered ones that depend on seed and index only.

    Returns:
        Boxes of shape (N, 4), float32, original frame.
    """
    boxes = sample.boxes
    if settings.eval_jitter == 0:
        return boxes
    rng = np.random.default_rng([settings.eval_seed, index])
    return jitter_boxes(boxes, sample.size, 0, settings.eval_jitter, rng)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    processor: Any,
    dataset: "Sequence[Sample]",
    settings: EvalSettings | None = None,
    *,
    limit: int | None = None,
    process: tuple[int, int] | None = None,
    progress: bool = True,
) -> ScoreTable:
    """Segments every instance of a data set from its box and scores the masks at original size.

    The mask decoder works as in :func:`~samparser.sam.lean_decoder`, so logits equal those of
    :func:`~samparser.prediction.predict` up to rounding.

    Args:
        model: A SamModel, or a PEFT model around one.
        processor: The model's SamProcessor.
        dataset: Samples with instances, see :mod:`samparser.data`.
        settings: Chunk size, jitter of the boxes and precision; by default tight boxes in float32.
        limit: Score the first so many images only.
        process: ``(rank, world size)`` scores every world-size-th image only and returns that part. Not given, the
            processes that ``accelerate launch`` started share the work and each gets the whole table, which is exactly
            that of one process.
        progress: Show a progress bar (on rank 0).

    Raises:
        OutOfMemoryError: The device's memory did not suffice; the message names the settings that need less.

    Returns:
        One row per instance; ``str()`` of the table prints all averages with their definitions.
    """
    settings = settings or EvalSettings()
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
    try:
        with autocast, advising(SCORING), lean_decoder(model):
            for index in indices:
                sample = dataset[index]
                boxes = prompts_for(sample, index, settings)
                masks = predict(model, processor, sample.image, boxes=boxes, batch=settings.eval_batch)
                rows.extend(score_instances(sample, masks))
    finally:
        model.train(was_training)
    if together:
        rows = gather_object(rows)
    return ScoreTable(rows, classes=getattr(dataset, "classes", None))


def evaluate_baselines(
    dataset: "Sequence[Sample]", settings: EvalSettings | None = None, *, limit: int | None = None
) -> dict[str, ScoreTable]:
    """Scores of two answers that need no model, given the boxes that :func:`evaluate` gives the model.

    A model that is not above them adds nothing to its prompt, however high its scores look.

    Returns:
        ``"box"``, the box itself as the mask, and ``"ellipse"``, the ellipse inscribed in it.
    """
    settings = settings or EvalSettings()
    rows: dict[str, list[Any]] = {"box": [], "ellipse": []}
    for index in range(min(len(dataset), limit or len(dataset))):
        sample = dataset[index]
        boxes = prompts_for(sample, index, settings)
        rows["box"] += score_instances(sample, box_masks(boxes, sample.size))
        rows["ellipse"] += score_instances(sample, ellipse_masks(boxes, sample.size))
    classes = getattr(dataset, "classes", None)
    return {name: ScoreTable(own, classes=classes) for name, own in rows.items()}
