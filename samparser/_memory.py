"""What to do when the device runs out of memory, said where it happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRAINING = (
    "Three settings help, the first one most: decode fewer instances of an image at a time (--max_instances 16), "
    "compute in half precision (--bf16), and train from cached features, so that the frozen encoder is not "
    "in memory (--cache DIR), or, with methods that train the encoder, with --gradient_checkpointing. With several "
    "images per step, a smaller --per_device_train_batch_size with --gradient_accumulation_steps keeps the same step."
)
SCORING = (
    "Three settings help: decode fewer prompts at a time (--eval_batch 4), compute in half precision (--eval_precision "
    "bf16), score without the GPU (--device cpu)."
)
PREDICTION = (
    "Three settings help: decode fewer prompts at a time (--batch 8), ask for fewer masks (fewer boxes per image, a "
    "smaller --grid), predict without the GPU (--device cpu)."
)

# What torch says where the machine's own memory does not suffice, in plain RuntimeErrors.
_ON_A_CPU = ("can't allocate memory", "not enough memory")


class OutOfMemoryError(RuntimeError):
    """The device's memory did not suffice; the message names the settings that need less."""


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Turn the errors of torch and numpy into one that names the settings that need less memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(f"The device ran out of memory. {advice}") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _ON_A_CPU):
            raise
        raise OutOfMemoryError(f"The machine ran out of memory. {advice}") from error
