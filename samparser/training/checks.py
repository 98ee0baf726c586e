"""What is looked at before a run writes anything: the model, the data, the loggers."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.integrations import get_reporting_integration_callbacks

from samparser.sam.changes import changes_before_neck

from .choosing_terms import check_terms, expansion_waits
from .leakage import shared_image
from .refused import refuse_sharding
from .settings import TrainSettings
from .trainer import trained_parameters


def check_request(
    model: nn.Module, train_set: Sequence[Any], eval_set: Any, settings: TrainSettings, also: Any = None
) -> None:
    """Refuse what cannot be trained, and settings that make no sense for this model, data or machine.

    Raises:
        ValueError: The message says what was given, what is possible and what to do.
    """
    if settings.output_dir is None:
        raise ValueError("output_dir is not given; name the folder that the run is to write.")
    if not any(True for _ in trained_parameters(model)) and not expansion_waits(model):
        raise ValueError(
            "Nothing in this model requires a gradient, so there is nothing to train. Wrap it first, for instance with "
            "get_peft_model(model, SVDCoefficientConfig(target_modules=['neck'])) or build('samparser', model)."
        )
    check_terms(model)
    if len(train_set) == 0:
        raise ValueError("The training set is empty: no image with an instance. `samparser data check` says why.")
    if eval_set is not None and len(eval_set) == 0:
        raise ValueError("The validation set is empty: no image with an instance. `samparser data check` says why.")
    if also is not None and len(also) == 0:
        raise ValueError("The other set to score, also, is empty: no image with an instance.")
    if eval_set is None and settings.early_stopping_patience is not None:
        raise ValueError(
            f"early_stopping_patience is {settings.early_stopping_patience}, but there are no validation images to "
            "stop by. Give some, or leave it out."
        )
    _check_shared(train_set, eval_set, settings, "validation set")
    _check_shared(train_set, also, settings, "other set, also")
    if settings.gradient_checkpointing and not changes_before_neck(model).trained:
        raise ValueError(
            "gradient_checkpointing saves nothing here: no layer before the neck is trained, so none of them keeps "
            "activations; it would only make every step slower. Leave it out."
        )
    if settings.fp16 and settings.device.type == "cpu":
        # accelerate has no fp16 autocast on a CPU and would train in fp32 without a word.
        raise ValueError("fp16 needs a GPU; on a CPU train in fp32 (leave it out) or with bf16.")
    _refuse_half(model, settings)
    _check_compiler(settings)
    refuse_sharding(settings.deepspeed_plugin)
    check_loggers(settings)


def _refuse_half(model: nn.Module, settings: TrainSettings) -> None:
    dtypes = {weight.dtype for weight in model.parameters()} & {torch.float16, torch.bfloat16}
    half = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    if half and not (settings.bf16 or settings.fp16):
        raise ValueError(
            f"This model has weights in {' and '.join(sorted(half))}, in which the small steps of a training are lost. "
            "Widen it before a method is applied: model.float(), which changes no value. To compute in half precision, "
            "give bf16."
        )


def _check_compiler(settings: TrainSettings) -> None:
    """Refuse to compile for a CPU without a C++ compiler now, not after the cache has been filled."""
    if not settings.torch_compile or settings.torch_compile_backend != "inductor" or settings.device.type != "cpu":
        return
    compiler = os.environ.get("CXX", {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++"))
    if shutil.which(compiler) is None:
        raise ValueError(
            f"torch_compile translates the model to C++ on a CPU, and the compiler {compiler} is not there. Install "
            "one, name one in the environment variable CXX, or leave torch_compile out. torch_compile_backend "
            "aot_eager needs none, and makes nothing faster."
        )


def check_loggers(settings: TrainSettings) -> None:
    """Find out before anything is written whether the loggers of `report_to` are known and installed.

    Raises:
        ValueError: One is not; the message names it.
    """
    assert isinstance(settings.report_to, list)
    try:
        for callback in get_reporting_integration_callbacks(settings.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"report_to is {', '.join(settings.report_to)}: {error} Or leave it out, or give none."
        ) from error


def _check_shared(train_set: Sequence[Any], scored: Any, settings: TrainSettings, what: str) -> None:
    twins = shared_image(train_set, scored) if scored is not None else None
    if twins is None:
        return
    same = f"{twins[0]} is" if twins[0] == twins[1] else f"{twins[0]} and {twins[1]} are the same file, which is"
    problem = (
        f"{same} in both the training and the {what}, so the scores would say nothing. Choose disjoint "
        "splits; `samparser data check` counts such images. Where a benchmark is published like this, "
        "--allow_shared goes on with a warning."
    )
    if not settings.allow_shared:
        raise ValueError(problem)
    warnings.warn(problem, stacklevel=4)
