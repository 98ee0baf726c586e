"""PEFT's reading, wrapped: a configuration of ours that `PeftConfig.from_pretrained` reads remembers where it lay.

`SVDCoefficientConfig.from_pretrained` sees to that itself, and is what `PeftModel.from_pretrained` calls. But
transformers' `model.load_adapter` reads with `PeftConfig.from_pretrained`, which makes a configuration of the adapter's
type without asking that type, then injects, and opens the file last. Without this wrap it takes files with NaN, with
missing and with unknown tensors in silence. For all other methods PEFT's reading does what it did before.
"""

from __future__ import annotations

import functools
from typing import Any

from peft import PeftConfig

from .config import SVDCoefficientConfig


def wrap_reading() -> None:
    """Wrap `PeftConfig.from_pretrained`."""
    read = PeftConfig.from_pretrained.__func__

    @functools.wraps(read)
    def from_pretrained(
        cls: type, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        config = read(cls, pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if isinstance(config, SVDCoefficientConfig):
            config.remember_source(pretrained_model_name_or_path, subfolder, kwargs)
        return config

    PeftConfig.from_pretrained = classmethod(from_pretrained)
