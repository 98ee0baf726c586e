"""Fields of `transformers.TrainingArguments` that training a SAM cannot honour: refused by name, never ignored."""

from __future__ import annotations

import os
from typing import Any

_GENERAL = "training a SAM has no use for it; leave it out."
_LOSS = "the loss is the paper's (see lambda_focal); leave it out."
_SCORING = "scores are made by EvalSettings: eval_batch, eval_precision and the fields beside them."
_RESUME = "a resumed run would no longer end as an uninterrupted one; leave it out."
_HUB = "the adapter of the finished run is uploaded once; leave it out."
_FLAGS = "`train` always trains, and scores where it has validation images; leave it out."
_SHARDED = (
    "the adapter and the scores need whole weights in one process, and what is trained is small: leave it out and "
    "start one process per GPU with `accelerate launch` (DDP), which takes the same steps."
)

REFUSED: dict[str, str] = {
    "label_smoothing_factor": _LOSS,
    "average_tokens_across_devices": _LOSS,
    "neftune_noise_alpha": "a SAM embeds no words; leave it out.",
    "use_liger_kernel": _GENERAL,
    "liger_kernel_config": _GENERAL,
    "use_cache": f"{_GENERAL} (Cached features: cache.)",
    "include_num_input_tokens_seen": _GENERAL,
    "length_column_name": _GENERAL,
    "label_names": _GENERAL,
    "remove_unused_columns": "samples are no table with columns; leave it out.",
    "optim_target_modules": "what is trained is the method's choice; leave it out.",
    "auto_find_batch_size": f"it changes the batch size on the way, and {_RESUME}",
    "ignore_data_skip": _RESUME,
    "save_only_model": "a run without its optimizer cannot be resumed; leave it out.",
    "save_on_each_node": "one process writes the run folder; leave it out.",
    "enable_jit_checkpoint": "a stopped run goes on from its last checkpoint anyway; leave it out.",
    "resume_from_checkpoint": "give resume, which takes the last whole checkpoint of output_dir.",
    "per_device_eval_batch_size": _SCORING,
    "prediction_loss_only": _SCORING,
    "eval_do_concat_batches": _SCORING,
    "eval_use_gather_object": _SCORING,
    "eval_accumulation_steps": _SCORING,
    "include_for_metrics": _SCORING,
    "batch_eval_metrics": _SCORING,
    "bf16_full_eval": _SCORING,
    "fp16_full_eval": _SCORING,
    "eval_on_start": "score_before does that, and keeps the table.",
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "do_train": _FLAGS,
    "do_predict": _FLAGS,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "parallelism_config": _SHARDED,
}


def refuse_inherited(settings: Any, given: set[str]) -> None:
    """Raise an error for the first inherited field that was given and cannot be honoured.

    Args:
        settings: The training settings.
        given: Names of the fields whose value is not the default.

    Raises:
        ValueError: The message names the field, its value and what to do instead.
    """
    for name, why in REFUSED.items():
        if name in given and not (why is _SHARDED and _is_empty(getattr(settings, name))):
            raise ValueError(f"{name} is {getattr(settings, name)!r}: {why}")
    if getattr(settings, "train_sampling_strategy", "random") not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy is {settings.train_sampling_strategy!r}: images have no length to group them by; "
            "give random or sequential."
        )
    if settings.optim == "adam" and settings.optim_args is not None:
        raise ValueError(
            f"optim_args is {settings.optim_args!r}, but optim is adam, which takes adam_beta1, adam_beta2 and "
            "adam_epsilon; leave it out or name another optim."
        )
    if settings.push_to_hub and not settings.hub_model_id:
        raise ValueError("push_to_hub needs the name of the repository; give hub_model_id USER/NAME.")
    if not settings.push_to_hub:
        lone = sorted(given & {"hub_model_id", "hub_private_repo", "hub_token", "hub_revision"})
        if lone:
            raise ValueError(f"{lone[0]} says how to upload the adapter; give push_to_hub as well, or leave it out.")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes"):
        # On a CPU accelerate would take DDP without a word.
        raise ValueError(f"accelerate was told to use FSDP (distributed_type, use_fsdp): {_SHARDED}")


def _is_empty(value: Any) -> bool:
    """Whether nothing is asked for: transformers 5.6 fills in [] and a dictionary of zeros, which copies are given."""
    return not value or (isinstance(value, dict) and not any(value.values()))


def refuse_sharding(deepspeed_plugin: Any) -> None:
    """Raise an error where DeepSpeed would split the weights themselves.

    Raises:
        ValueError: The stage of ZeRO is 3.
    """
    if deepspeed_plugin is not None and deepspeed_plugin.zero_stage == 3:
        raise ValueError(f"deepspeed says ZeRO stage 3: {_SHARDED} Stages 1 and 2 keep the weights whole.")
