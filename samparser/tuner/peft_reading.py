"""PEFT's reading, wrapped: damaged configurations are named, one of ours remembers where it lay, and versions are told.

`SVDCoefficientConfig.from_pretrained` sees to the second by itself, and is what `PeftModel.from_pretrained` calls. But
transformers' `model.load_adapter` reads with `PeftConfig.from_pretrained`, which makes a configuration of the adapter's
type without asking that type, then injects, and opens the file last. Without this wrap it takes files with NaN, with
missing and with unknown tensors in silence. For all other methods PEFT's reading does what it did before.
"""

from __future__ import annotations

import functools
from typing import Any

import peft
import transformers
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers.integrations import peft as transformers_peft

from samparser._untrusted import checked_reader, with_file

from .config import SVDCoefficientConfig


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


def wrap_version_check() -> None:
    """Let transformers say which versions go together where it asks for a PEFT that may not be out.

    transformers 5.24 asks for peft 0.22 in `add_adapter`, `set_adapter`, `delete_adapter` and in `save_pretrained` of a
    model with adapters, of whatever method.
    """
    check = getattr(transformers_peft, "check_peft_version", None)
    if check is None:  # Then there is nothing to say.
        return

    @functools.wraps(check)
    def check_peft_version(min_version: str) -> None:
        try:
            check(min_version)
        except ValueError as error:
            raise ValueError(
                f"{error}. With peft {peft.__version__}, transformers {transformers.__version__} refuses this for all "
                "methods, LoRA too. Two versions that go together are transformers<5.24 and peft 0.21: pip install "
                "'transformers<5.24' 'peft==0.21.*'. Or stay with these and use peft.get_peft_model and "
                "PeftModel.from_pretrained, which work."
            ) from error

    transformers_peft.check_peft_version = check_peft_version
