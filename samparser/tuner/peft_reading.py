"""PEFT's reading, wrapped: damaged configurations are named, and one of ours remembers where it lay.

`SVDCoefficientConfig.from_pretrained` sees to the second by itself, and is what `PeftModel.from_pretrained` calls. But
transformers' `model.load_adapter` reads with `PeftConfig.from_pretrained`, which makes a configuration of the adapter's
type without asking that type, then injects, and opens the file last. Without this wrap it takes files with NaN, with
missing and with unknown tensors in silence. For all other methods PEFT's reading does what it did before.
"""

from __future__ import annotations

import functools
from typing import Any

import peft
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from samparser._untrusted import checked_reader

from .config import SVDCoefficientConfig, with_file


def wrap_reading() -> None:
    """Wrap `PeftConfig.from_pretrained`, and `PeftConfig.from_json_file`, which every reading goes through."""
    read = PeftConfig.from_pretrained.__func__

    @functools.wraps(read)
    def from_pretrained(
        cls: type, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        try:
            config = read(cls, pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
            if isinstance(config, SVDCoefficientConfig):
                config.remember_source(pretrained_model_name_or_path, subfolder, kwargs)
        except ValueError as error:
            raise with_file(error, pretrained_model_name_or_path, subfolder) from error
        return config

    PeftConfig.from_pretrained = classmethod(from_pretrained)
    PeftConfig.from_json_file = classmethod(
        checked_reader(
            PeftConfig.from_json_file.__func__,
            kind="peft_type",
            known=PEFT_TYPE_TO_CONFIG_MAPPING.keys(),
            reader=f"PEFT {peft.__version__}",
        )
    )
