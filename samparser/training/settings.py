"""Training settings: `transformers.TrainingArguments` with the fields that tuning a SAM adds.

`transformers.HfArgumentParser` reads the dataclass, so each field is also an option of the command line.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from samparser._options import option
from samparser.features.precision import DTYPES

from .refused import refuse_inherited

# The paper, "Implementation Details": Adam, one image per mini-batch, all of its instances together, and coefficients
# at the learning rate of everything else.
_NATURAL = {"learning_rate": 1.5e-4, "weight_decay": 5e-5, "num_train_epochs": 10.0, "lambda_focal": 0.5}
RECIPES: dict[str, dict[str, Any]] = {
    # Ours. At the paper's rate Adam moves a coefficient of 1 by 1.5e-4 a step, which hardly shows after some hundred
    # steps; at this one it moves (docs/results.md).
    "own": {**_NATURAL, "coefficient_lr": 1e-2},
    "medical": {"learning_rate": 1e-6, "weight_decay": 5e-4, "num_train_epochs": 25.0, "lambda_focal": 0.0},
    "natural": _NATURAL,
    "remote-sensing": _NATURAL,
}

# Fields that a resumed run may have otherwise: they change where and how fast a run goes, or what it says, and no
# number of its result.
MAY_DIFFER = frozenset(
    {
        *(
            "output_dir",
            "use_cpu",
            "save_total_limit",
            "allow_shared",
            "cache",
            "cache_limit_gb",
            "cache_shards",
            "torch_empty_cache_steps",
        ),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_timeout"),
        *("logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "disable_tqdm", "skip_memory_metrics", "debug"),
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"),
    }
)


# More images or steps than anybody has, and few enough for every counter below us.
_MOST = 2**31 - 1

# What each of these is where it says nothing, so that without a cache it needs no word.
OF_A_CACHE = {
    "cache_projected": False,
    "cache_limit_gb": None,
    "cache_batch": 1,
    "cache_autocast": None,
    "cache_shards": None,
}

_CHOICES = {
    "recipe": [*RECIPES],
    "optim": ["adam", *(choice.value for choice in OptimizerNames)],
    "lr_scheduler_type": [choice.value for choice in SchedulerType],
    "eval_strategy": [choice.value for choice in IntervalStrategy],
    "metric_for_best_model": ["miou", "f1"],
    "cache_dtype": [*DTYPES],
    "cache_autocast": [None, "bf16", "fp16"],
}


@dataclass
class TrainSettings(TrainingArguments):
    """How to train: the fields of `transformers.TrainingArguments`, and below them those of ours.

    A value that is not given comes from the recipe. Inherited fields mean what they mean in transformers; those that
    training a SAM cannot honour are refused by name. Where a default differs from that of transformers, it is the
    paper's, or what a run needs so that it can be resumed.

    Raises:
        ValueError: A value is out of its range, or cannot be honoured; the message names the field, the value and
            what is possible.
    """

    COMMON: ClassVar[tuple[str, ...]] = (
        *("output_dir", "num_train_epochs", "max_steps", "learning_rate", "weight_decay", "optim"),
        *("lr_scheduler_type", "warmup_steps", "max_grad_norm", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "gradient_checkpointing", "bf16", "fp16", "torch_compile", "use_cpu", "seed"),
        *("dataloader_num_workers", "eval_strategy", "eval_steps", "metric_for_best_model", "load_best_model_at_end"),
        *("save_total_limit", "logging_steps", "report_to", "push_to_hub", "hub_model_id"),
    )
    """The inherited fields that most runs need; `--help` shows these and ours, settings.json always holds them."""

    output_dir: str | None = option(
        "Folder of the run, which gets settings, log, checkpoints, adapter, scores and figures.", None
    )
    recipe: Literal["own", "medical", "natural", "remote-sensing"] = option(
        "What fills in learning_rate, weight_decay, num_train_epochs and lambda_focal where they are not given. The "
        "paper's: medical (1e-6, 5e-4, 25 epochs, 0), natural and remote-sensing (1.5e-4, 5e-5, 10 epochs, 0.5), with "
        "coefficients at the learning rate of everything else. own: as natural, with coefficients at 1e-2.",
        "own",
    )
    num_train_epochs: float | None = option("Passes over the training images; not given: the recipe's.", None)
    learning_rate: float | None = option(
        "Learning rate of everything but the coefficients; not given: the recipe's.", None
    )
    coefficient_lr: float | None = option(
        "Learning rate of the SVD coefficients, which is about how far Adam moves one in a step. Not given: the "
        "recipe's, 1e-2 in own; in the paper's recipes the learning_rate, which hardly moves them.",
        None,
    )
    weight_decay: float | None = option("L2 penalty of Adam, on every trained tensor; not given: the recipe's.", None)
    optim: str = option(
        "The optimizer: adam (the paper's, fused), or any name of transformers, such as adamw_torch or sgd.", "adam"
    )
    lr_scheduler_type: str = option("How the learning rates change during the run.", "constant")
    max_grad_norm: float = option("Clip the gradient's norm to this value; 0: do not clip (the paper).", 0.0)
    lambda_focal: float | None = option(
        "Weight of the focal loss against cross-entropy in (1 - lambda) * ce + lambda * focal + dice: 0 for one "
        "instance per image, as in medical images. The paper gives no other value; not given: the recipe's.",
        None,
    )
    loss_resolution: Literal["input", "logits"] = option(
        "Where the loss compares masks: 'input' scales the logits up to the model's input size, as the scores do; "
        "'logits' scales the masks down to the logits (a quarter of the input for SAM ViT): a little faster, coarser "
        "outlines.",
        "input",
    )
    per_device_train_batch_size: int = option("Images per process and step.", 1)
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass: less memory, slower steps; refused where nothing before the neck "
        "is trained.",
        False,
    )
    flip: bool = option("Mirror each training image left to right with probability 0.5, anew in each epoch.", False)
    expansion_images: int = option(
        "Choose the directions of an expansion on at most so many training images: one half chooses, the other "
        "measures which share of the gradient the trained numbers see.",
        64,
    )
    cache: str | None = option(
        "Folder for the features of the frozen image encoder: computed once per image, then every epoch runs the neck "
        "and the decoder only. Refused where anything before the neck is trained. The disk need is announced first: "
        "6.3 MB per image in fp16 for SAM ViT-B at 1024 pixels, and as much again for flips.",
        None,
    )
    cache_dtype: Literal["fp16", "fp32", "int8"] = option(
        "Precision of cached features: fp16 rounds to 11 bits, fp32 is exact at twice the size, int8 takes half of it "
        "with a scale for each channel of each image.",
        "fp16",
    )
    cache_projected: bool = option(
        "Cache what comes after the frozen basis of the neck's first layer: a third of the size for ViT-B.", False
    )
    cache_batch: int = option(
        "Images that the encoder takes at a time to fill the cache; more than one may change the last bits of "
        "features. dataloader_num_workers processes read and resize meanwhile.",
        1,
    )
    cache_autocast: Literal["bf16", "fp16"] | None = option(
        "Fill the cache under autocast to this type; its error is measured on the first images and printed. Not given: "
        "the model's own precision.",
        None,
    )
    cache_shards: int | None = option(
        "Put the features of so many images in one file, for disks that are slow with many files; not given: one file "
        "for each. Read are both.",
        None,
    )
    cache_limit_gb: float | None = option("Refuse to cache more than so many gigabytes; not given: no limit.", None)
    seed: int = option("Seed of the order of images, of the prompts and of everything random.", 0)
    eval_strategy: str = option(
        "When to score the validation images and save a checkpoint: after each epoch, every eval_steps steps, or no: "
        "score at the end only, save after each epoch.",
        "epoch",
    )
    eval_limit: int | None = option("Score only so many validation images during training; not given: all.", None)
    metric_for_best_model: str = option("The score that chooses the best checkpoint: miou or f1.", "miou")
    load_best_model_at_end: bool = option(
        "Keep the weights of the best evaluation rather than those of the last step.", True
    )
    score_before: bool = option(
        "Also score the model before its first step, so that the run says whether tuning helped.", True
    )
    allow_shared: bool = option("Go on, with a warning, although an image is both trained on and scored.", False)
    early_stopping_patience: int | None = option(
        "Stop when the score did not rise in so many evaluations; not given: never.", None
    )
    save_strategy: str | None = option(
        "When to save a checkpoint; not given: whenever the validation images are scored, else after each epoch.", None
    )
    save_steps: float | None = option("Steps between two checkpoints; not given: eval_steps.", None)
    save_total_limit: int | None = option(
        "How many checkpoints to keep (at least 2, so that a crash leaves one whole).", 2
    )
    logging_steps: float = option("Steps between two lines of the log.", 10)
    # HfArgumentParser reads the second of three types: one text.
    report_to: None | str | list[str] = option(  # noqa: RUF036
        "Loggers of transformers, by name and with commas between them: tensorboard, wandb, ..., or none.",
        "tensorboard",
    )
    hub_strategy: str = option("When to upload with push_to_hub: end, the adapter of the finished run.", "end")
    remove_unused_columns: bool = option("Always off: samples are no table.", False)
    ddp_find_unused_parameters: bool | None = option(
        "On for several processes: the decoder's IoU head gets no gradient from a loss on masks.", True
    )

    def __post_init__(self) -> None:
        # HfArgumentParser loses these two defaults.
        for name, default in (("debug", ""), ("include_num_input_tokens_seen", "no")):
            setattr(self, name, getattr(self, name) or default)
        given = {part.name for part in fields(self) if getattr(self, part.name) != _default_of(part)}
        self._check_choices()
        self._fill_from_recipe()
        self._check_values()
        refuse_inherited(self, given)
        self._fill_strategies()
        self._super_post_init()
        # What the other fields became by themselves, so that `recorded` can tell it from what somebody chose.
        self._given = given
        self._unchosen = {name: value for name, value in self.to_dict().items() if name not in given}

    def _check_choices(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(map(str, known))}.")

    def _fill_from_recipe(self) -> None:
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.coefficient_lr is None:
            self.coefficient_lr = self.learning_rate

    def _check_values(self) -> None:
        for name in ("learning_rate", "coefficient_lr", "num_train_epochs", "cache_limit_gb", "eval_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be greater than 0, and finite.")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must not be negative, and finite.")
        at_least_one = ("per_device_train_batch_size", "gradient_accumulation_steps", "cache_batch", "cache_shards")
        if self.expansion_images < 2:
            raise ValueError(
                f"expansion_images is {self.expansion_images}; one half chooses and the other measures, so it must be "
                "at least 2."
            )
        for name in (*at_least_one, "logging_steps", "early_stopping_patience", "eval_limit"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise ValueError(f"{name} is {value}; it must be at least 1, and at most {_MOST:,}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must lie between 0 and 2**32 - 1.")
        if self.max_steps == 0 or not -1 <= self.max_steps <= _MOST:
            raise ValueError(f"max_steps is {self.max_steps}; give a number of steps, or -1: as long as the epochs.")
        if self.lambda_focal is None or not 0 <= self.lambda_focal <= 1:
            raise ValueError(f"lambda_focal is {self.lambda_focal}; it must lie between 0 and 1.")
        chosen = [name for name, unused in OF_A_CACHE.items() if getattr(self, name) != unused]
        if self.cache is None and chosen:
            raise ValueError(f"Without a cache {', '.join(chosen)} cannot be honoured; give the folder, cache, too.")
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(
                f"save_total_limit is {self.save_total_limit}; at least 2, so that a run killed while it writes one "
                "checkpoint can go on from the other."
            )

    def _fill_strategies(self) -> None:
        """Save whenever the validation images are scored, and choose the best of those checkpoints."""
        strategy = IntervalStrategy(self.eval_strategy).value
        if strategy != "steps" and self.eval_steps is not None:
            raise ValueError(f"eval_steps is {self.eval_steps}, but eval_strategy is {strategy}; give it steps.")
        if strategy == "no":
            if self.early_stopping_patience is not None:
                raise ValueError(
                    f"early_stopping_patience is {self.early_stopping_patience}, but eval_strategy is no, so there is "
                    "no score to stop by; give epoch or steps."
                )
            self.load_best_model_at_end = False
        if self.save_strategy is None:
            self.save_strategy = "steps" if strategy == "steps" or self.save_steps is not None else "epoch"
        if self.save_strategy not in ("steps", "epoch"):
            raise ValueError(
                f"save_strategy is {SaveStrategy(self.save_strategy).value}; epoch or steps, so that a killed run can "
                "be resumed."
            )
        if self.save_strategy == "epoch" and self.save_steps is not None:
            raise ValueError(f"save_steps is {self.save_steps}, but save_strategy is epoch; give it steps.")
        if self.save_strategy == "steps" and self.save_steps is None:
            self.save_steps = self.eval_steps or self.logging_steps

    def _super_post_init(self) -> None:
        # A machine without a GPU needs no flag to train; transformers would refuse bf16 there.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        if isinstance(self.report_to, str) and "," in self.report_to:
            self.report_to = [name.strip() for name in self.report_to.split(",") if name.strip()]
        # Newer transformers say activation checkpointing, and warn where only the older word is given.
        word = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        self.gradient_checkpointing = bool(self.gradient_checkpointing or getattr(self, word))
        setattr(self, word, self.gradient_checkpointing)
        if self.gradient_checkpointing and getattr(self, f"{word}_kwargs") is None:
            setattr(self, f"{word}_kwargs", {"use_reentrant": False})
        # The paper's Adam has no name in transformers, which looks at the name here only.
        adam = self.optim == "adam"
        if adam:
            self.optim = "adamw_torch"
        folder = self.output_dir
        super().__post_init__()
        if adam:
            self.optim = "adam"
        # transformers invents a name; `train` asks for one.
        self.output_dir = self.output_dir if folder else None

    @classmethod
    def usual(cls) -> list[str]:
        """Return the names of the fields that most runs need: the common inherited ones, then ours."""
        inherited = {part.name for part in fields(TrainingArguments)}
        return [*cls.COMMON, *(part.name for part in fields(cls) if part.name not in inherited)]

    def described(self) -> str:
        """Return the recipe, what it filled in, and what else was given, as one line.

        >>> print(TrainSettings(recipe="medical", seed=3).described())  # doctest: +ELLIPSIS
        recipe medical: learning_rate 1e-06, weight_decay 0.0005, ..., coefficient_lr 1e-06, seed 3
        """
        values = self.to_dict()
        given = [name for name in self.usual() if name in self._given and name not in ("recipe", "output_dir")]
        names = dict.fromkeys([*RECIPES[self.recipe], "coefficient_lr", *given])
        return f"recipe {self.recipe}: " + ", ".join(f"{name} {values[name]}" for name in names)

    def recorded(self) -> dict[str, Any]:
        """Return the values for settings.json: our fields, the common ones, and whatever else was chosen."""
        shown, unset = self.usual(), object()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name in shown or value != self._unchosen.get(name, unset)
        }


def _default_of(part: Any) -> Any:
    return part.default if part.default_factory is MISSING else part.default_factory()
