"""SAM's training step on `transformers.Trainer`: prompts in, masks out, the loss of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from samparser.sam.changes import frozen_before_neck
from samparser.scoring.losses import LossTerms, segmentation_loss
from samparser.scoring.table import ScoreTable
from samparser.tuner import coefficient_parameters, warn_of_unused_coefficients

from .eval_settings import EvalSettings
from .evaluation import evaluate
from .settings import TrainSettings

_PROMPTS = ("input_boxes", "input_points", "input_labels")


def mask_logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Return one mask per prompt, as logits of shape (B, N, h, w) at the decoder's resolution.

    The model is called once. From features, images with unequal numbers of prompts cost no more than these: the prompts
    of all images are decoded in a row, and what fills the batch up is not. Its logits are zero then.

    Args:
        model: A model of a SAM family or a wrapper with its forward signature.
        batch: `pixel_values` (B, 3, S, S), or features of a cache, and `input_boxes` (B, N, 4) or `input_points`
            (B, N, P, 2) with `input_labels` (B, N, P), coordinates in the input frame; with features also
            `prompt_rows`, as `collate` gives them.
    """
    prompts = {name: batch[name] for name in _PROMPTS if name in batch}
    rows = {"prompt_rows": batch["prompt_rows"]} if _may_be_in_a_row(model, batch) else {}
    logits = model(pixel_values=batch["pixel_values"], multimask_output=False, **prompts, **rows).pred_masks[:, :, 0]
    size = next(iter(prompts.values())).shape[:2]
    if logits.shape[:2] == size:
        return logits
    filled = logits.new_zeros(size.numel(), *logits.shape[2:])
    return filled.index_copy(0, batch["prompt_rows"], logits[:, 0]).unflatten(0, size)


def _may_be_in_a_row(model: nn.Module, batch: dict[str, Any]) -> bool:
    """Return whether prompts may go one after another: some rows are filled up, and the model works from features."""
    # nn.DataParallel deals the rows of every tensor out to its devices.
    if not isinstance(batch["pixel_values"], tuple) or isinstance(model, nn.DataParallel):
        return False
    return "prompt_rows" in batch and 0 < batch["prompt_rows"].numel() < batch["instance_valid"].numel()


def batch_loss(logits: Tensor, batch: dict[str, Any], settings: TrainSettings) -> LossTerms:
    """Return the loss of Eq. 5 on a batch: the mean over the instances of an image, then over the images.

    Args:
        logits: (B, N, h, w), any float type.
        batch: `masks` (B, N, S, S), `instance_valid` (B, N) and `pixel_valid` (B, S, S); and, where it is known,
            `prompt_counts`, how many of the N are instances of each image, which come first.
        settings: Weight of the focal loss and the resolution to compare at.
    """
    images = [_image_loss(logits[i], batch, i, settings) for i in range(len(logits))]
    return LossTerms(
        *(torch.stack([getattr(terms, part.name) for terms in images]).mean() for part in fields(LossTerms))
    )


def _image_loss(logits: Tensor, batch: dict[str, Any], image: int, settings: TrainSettings) -> LossTerms:
    """Average over the instances of one image; rows that pad the batch are left out before anything is scaled."""
    # A count, where the batch has it, is the host's; which rows are valid an accelerator would have to be asked for.
    valid = slice(batch["prompt_counts"][image]) if "prompt_counts" in batch else batch["instance_valid"][image]
    logits = logits[valid][None]
    masks, pixel_valid = batch["masks"][image][valid][None], batch["pixel_valid"][image][None]
    if settings.loss_resolution == "logits":
        size = logits.shape[-2:]
        masks = F.interpolate(masks.float(), size=size, mode="area") >= 0.5
        pixel_valid = F.interpolate(pixel_valid[None].float(), size=size, mode="area")[0] >= 0.5
    everyone = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    return segmentation_loss(logits, masks, everyone, pixel_valid, lambda_focal=settings.lambda_focal or 0.0)


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the trained tensors for the optimizer: coefficients with a learning rate of their own, and the rest.

    Weight decay pulls numbers to zero, which is where relative coefficients, offsets and terms start. Coefficients that
    train as they are start elsewhere: they are decayed in the paper's recipes alone, which do so.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = {id(parameter): name for name, parameter in coefficient_parameters(model)}
    as_they_are = {key for key, name in numbers.items() if ".svd_coefficient_p." in f".{name}"}
    spared = as_they_are if settings.recipe == "own" else set()
    decay, coefficients = settings.weight_decay or 0.0, {"lr": settings.coefficient_lr, "name": "coefficients"}
    others = {"lr": settings.learning_rate, "name": "others", "weight_decay": decay}
    groups = [
        {"params": [p for p in trained if id(p) in numbers.keys() - spared], **coefficients, "weight_decay": decay},
        {"params": [p for p in trained if id(p) in spared], **coefficients, "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) not in numbers], **others},
    ]
    return [group for group in groups if group["params"]]


def fused_adam(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Adam:
    """Return Adam, as in the paper (not AdamW), with the moments and the L2 penalty of the settings."""
    # fused: one pass over each tensor, a third of the time on a CPU
    return torch.optim.Adam(
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )


class SamTrainer(Trainer):
    """Train whatever parameters of a SAM require a gradient, with box or point prompts and Eq. 5.

    It never asks which method made the parameters trainable. The mean runs over the instances of an image first and
    then over images, so two processes with one image each take the same step as one process with two.

    The image encoder before its neck stays in eval mode while nothing of it trains, so that what enters the neck is the
    same in training, in a cache and afterwards.
    """

    args: TrainSettings
    optimizer: Any
    control: Any

    def __init__(
        self,
        *args: Any,
        processor: Any,
        eval_settings: EvalSettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # The loss is a mean over images; transformers must not scale it by a count of its own.
        self.model_accepts_loss_kwargs = False
        self.processor = processor
        self.eval_settings = eval_settings or EvalSettings()
        self.last_scores: ScoreTable | None = None
        self.last_scored_step: int | None = None
        self._terms: dict[str, Tensor] = {}
        self._batches = 0
        self._frozen = frozen_before_neck(self.model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; its parts are averaged into the next log entry."""
        if model.training:  # transformers puts the whole model in training mode before each step
            for part in self._frozen:
                part.eval()
        with self.accelerator.autocast():  # accelerate wraps the forward, and features are embedded in a hook before it
            logits = mask_logits(model, inputs)
        terms = batch_loss(logits, inputs, self.args)
        for name in ("ce", "focal", "dice"):
            self._terms[name] = self._terms.get(name, 0) + getattr(terms, name).detach()
        self._batches += 1
        return (terms.total, {"logits": logits}) if return_outputs else terms.total

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of the settings, with the learning rates of the settings."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args)
            if self.args.optim == "adam":
                self.optimizer = fused_adam(groups, self.args)
            else:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = kind(groups, **options)
            warn_of_unused_coefficients(self.model, self.optimizer)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the rate of each group, and the parts of the loss, meant over the batches since the last entry."""
        if "learning_rate" in logs and self.optimizer is not None:
            rates = {group.get("name"): float(group["lr"]) for group in self.optimizer.param_groups}
            if "coefficients" in rates:
                logs["coefficient_lr"] = rates["coefficients"]
            logs["learning_rate"] = rates.get("others", logs["learning_rate"])
        if "loss" in logs and self._batches:
            means = self.accelerator.reduce(torch.stack(list(self._terms.values())) / self._batches, "mean")
            logs.update(zip(self._terms, means.tolist(), strict=True))
            self._terms, self._batches = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count none: transformers' estimate is for language models; `samparser.methods.cost` counts products."""
        return 0

    def score(
        self, dataset: Any, limit: int | None = None, *, tuned: bool = True, settings: EvalSettings | None = None
    ) -> ScoreTable:
        """Return the scores of the model as it is on the first so many samples, or on all, without a log entry.

        Args:
            dataset: What to score on.
            limit: The first so many samples only.
            tuned: See `evaluate`; false before the first step.
            settings: How to score; by default as the validation images.
        """
        return evaluate(
            self.accelerator.unwrap_model(self.model),
            self.processor,
            dataset,
            settings or self.eval_settings,
            limit=limit,
            tuned=tuned,
            progress=not self.args.disable_tqdm,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation samples at original size; every process takes its share, all get the same table.

        Under the prefix "final" all of them are scored, whatever `eval_limit` says.
        """
        limit = None if metric_key_prefix == "final" else self.args.eval_limit
        table = self.score(self.eval_dataset if eval_dataset is None else eval_dataset, limit)
        self.last_scores, self.last_scored_step = table, self.state.global_step
        metrics = {f"{metric_key_prefix}_miou": table.miou, f"{metric_key_prefix}_f1": table.f1}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and tensor of everything that requires a gradient."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
