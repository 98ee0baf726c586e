"""What a training run is told: a dataclass in which every field has its help text.

It is read by :class:`transformers.HfArgumentParser`, so each field is also an option of the command line.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from transformers import SchedulerType

RECIPES: dict[str, dict[str, Any]] = {
    # The paper, "Implementation Details": Adam, one image per mini-batch, all of its instances together.
    "medical": {"learning_rate": 1e-6, "weight_decay": 5e-4, "epochs": 25.0, "lambda_focal": 0.0},
    "natural": {"learning_rate": 1.5e-4, "weight_decay": 5e-5, "epochs": 10.0, "lambda_focal": 0.5},
    "remote-sensing": {"learning_rate": 1.5e-4, "weight_decay": 5e-5, "epochs": 10.0, "lambda_focal": 0.5},
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """How to train. A value that is not given comes from the recipe; :meth:`resolved` shows the result.

    Raises:
        ValueError: A value is out of its range; the message names the field, the value and the range.
    """

    recipe: Literal["medical", "natural", "remote-sensing"] = _option(
        "natural",
        "The paper's setting that fills in learning_rate, weight_decay, epochs and lambda_focal where they are not "
        "given: medical (1e-6, 5e-4, 25 epochs, 0), natural and remote-sensing (1.5e-4, 5e-5, 10 epochs, 0.5).",
    )
    learning_rate: float | None = _option(None, "Learning rate of everything but the coefficients.")
    coefficient_lr: float | None = _option(
        None,
        "Learning rate of the SVD coefficients. Not given: learning_rate, as in the paper; then Adam moves a "
        "coefficient by about that much a step, which is little: 10 to 1000 times more is usual for coefficients.",
    )
    weight_decay: float | None = _option(None, "L2 penalty of Adam, on every trained tensor.")
    epochs: float | None = _option(None, "Passes over the training images.")
    max_steps: int = _option(-1, "Stop after so many optimizer steps; -1: after the epochs.")
    lambda_focal: float | None = _option(
        None,
        "Weight of the focal loss against cross-entropy in (1 - lambda) * ce + lambda * focal + dice: 0 for one "
        "instance per image, as in medical images. The paper gives no other value.",
    )
    loss_resolution: Literal["input", "logits"] = _option(
        "input",
        "Where the loss compares masks: 'input' scales the logits up to the model's input size, as the scores do; "
        "'logits' scales the masks down to the logits (a quarter of the input for SAM ViT): a little faster, coarser "
        "outlines.",
    )
    batch_size: int = _option(1, "Images per process and step.")
    gradient_accumulation: int = _option(1, "Batches whose gradients are averaged into one optimizer step.")
    gradient_checkpointing: bool = _option(
        False, "Recompute activations in the backward pass; refused where nothing before the neck is trained."
    )
    max_grad_norm: float = _option(0.0, "Clip the gradient's norm to this value; 0: do not clip (the paper).")
    lr_scheduler: str = _option("constant", "Any schedule of transformers: constant, linear, cosine, ...")
    warmup_steps: int = _option(0, "Steps over which the learning rate rises from 0.")
    precision: Literal["fp32", "bf16", "fp16"] = _option("fp32", "Autocast type of the forward pass; losses are fp32.")
    flip: bool = _option(False, "Mirror each training image left to right with probability 0.5, anew in each epoch.")
    cache: str | None = _option(
        None,
        "Folder for the features of the frozen image encoder: computed once per image, then every epoch runs the neck "
        "and the decoder only. Refused where anything before the neck is trained. The disk need is announced first: "
        "6.3 MB per image in fp16 for SAM ViT-B at 1024 pixels, and as much again for flips.",
    )
    cache_dtype: Literal["fp16", "fp32"] = _option(
        "fp16", "Precision of cached features: fp16 rounds to 11 bits, fp32 is exact at twice the size."
    )
    cache_projected: bool = _option(
        False, "Cache what comes after the frozen basis of the neck's first layer: a third of the size for ViT-B."
    )
    cache_limit_gb: float | None = _option(None, "Refuse to cache more than so many gigabytes; not given: no limit.")
    device: Literal["auto", "cpu"] = _option("auto", "auto: a GPU where there is one; cpu: never a GPU.")
    seed: int = _option(0, "Seed of the order of images, of the prompts and of everything random.")
    workers: int = _option(0, "Processes that read images; 0: read in the training process.")
    eval_every: str = _option(
        "epoch", "When to score the validation images and save a checkpoint: 'epoch', 'never', or a number of steps."
    )
    eval_limit: int | None = _option(None, "Score only so many validation images during training; not given: all.")
    metric: str = _option("miou", "The score that chooses the best checkpoint: miou or f1.")
    score_before: bool = _option(
        True, "Also score the model before its first step, so that the run says whether tuning helped."
    )
    allow_shared: bool = _option(
        False, "Go on, with a warning, although an image is in both the training and the validation set."
    )
    patience: int | None = _option(None, "Stop when the score did not rise in so many evaluations; not given: never.")
    keep_checkpoints: int = _option(2, "How many checkpoints to keep (at least 2, so that a crash leaves one whole).")
    log_every: int = _option(10, "Steps between two lines of the log.")
    report_to: str = _option("tensorboard", "Loggers of transformers, by name: tensorboard, wandb, ..., or none.")

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe is {self.recipe!r}; known are {', '.join(RECIPES)}.")
        for name in ("learning_rate", "coefficient_lr", "epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0.")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative.")
        for name in ("batch_size", "gradient_accumulation", "log_every", "patience", "eval_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.cache is None and (self.cache_projected or self.cache_limit_gb is not None):
            raise ValueError("cache_projected and cache_limit_gb say how to cache; give the folder, cache, as well.")
        if self.cache_limit_gb is not None and not self.cache_limit_gb > 0:
            raise ValueError(f"cache_limit_gb is {self.cache_limit_gb}; it must be greater than 0.")
        schedules = [schedule.value for schedule in SchedulerType]
        if self.lr_scheduler not in schedules:
            raise ValueError(f"lr_scheduler is {self.lr_scheduler!r}; known are {', '.join(schedules)}.")
        if self.keep_checkpoints < 2:
            raise ValueError(
                f"keep_checkpoints is {self.keep_checkpoints}; at least 2, so that a run killed while it writes one "
                "can go on from the other."
            )
        if self.lambda_focal is not None and not 0 <= self.lambda_focal <= 1:
            raise ValueError(f"lambda_focal is {self.lambda_focal}; it must lie between 0 and 1.")
        if self.metric not in ("miou", "f1"):
            raise ValueError(f"metric is {self.metric!r}; known are miou, f1.")
        if self.eval_every not in ("epoch", "never") and not (self.eval_every.isdigit() and int(self.eval_every) > 0):
            raise ValueError(f"eval_every is {self.eval_every!r}; give 'epoch', 'never' or a number of steps.")

    def resolved(self) -> "TrainSettings":
        """The same settings with every value that was left open filled in from the recipe."""
        filled = {name: value for name, value in RECIPES[self.recipe].items() if getattr(self, name) is None}
        settings = replace(self, **filled)
        return replace(settings, coefficient_lr=settings.coefficient_lr or settings.learning_rate)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for ``settings.json``."""
        return asdict(self)
