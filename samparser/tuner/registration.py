"""Registration with PEFT: the one file that writes to PEFT's registry and wraps its reading. Fails loudly.

PEFT has no plug-in hook. `register_peft_method` takes only names that are members of its `PeftType` enumeration, and
the name of a member is what goes into adapter_config.json, so a real member has to be made first.

`SVDCoefficientConfig.from_pretrained` sees to its files by itself, and is what `PeftModel.from_pretrained` calls. But
transformers' `model.load_adapter` reads with `PeftConfig.from_pretrained`, which makes a configuration of the adapter's
type without asking that type, then injects, and opens the file last. Without the wrap it takes files with NaN, with
missing and with unknown tensors in silence. For all other methods PEFT's reading does what it did before.
"""

from __future__ import annotations

import functools
from typing import Any

import peft
import transformers
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from transformers.integrations import peft as transformers_peft

from samparser._untrusted import checked_reader, with_file

from .config import NAME, PREFIX, SVDCoefficientConfig
from .model import SVDCoefficientModel


def add_peft_type() -> PeftType:
    """Return `PeftType.SVD_COEFFICIENT`, which is added to the enumeration if this PEFT does not have it.

    Raises:
        RuntimeError: The enumeration of this PEFT cannot be extended as those of 0.21 and 0.22 can.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    try:
        member = str.__new__(PeftType, NAME)
        member._name_ = NAME
        member._value_ = NAME
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        # The attribute goes first: once the name is in _member_map_, the enumeration refuses to be assigned to.
        setattr(PeftType, NAME, member)
        PeftType._member_map_[NAME] = member
        PeftType._member_names_.append(NAME)
        PeftType._value2member_map_[NAME] = member
    except (AttributeError, TypeError) as error:
        raise RuntimeError(_cannot_register("its PeftType enumeration cannot be extended")) from error
    if PeftType(NAME) is not member or PeftType[NAME] is not member or NAME not in list(PeftType):
        raise RuntimeError(_cannot_register("its PeftType enumeration did not keep the new member"))
    return member


def register() -> None:
    """Register `SVDCoefficientConfig` and `SVDCoefficientModel` under `PeftType.SVD_COEFFICIENT`.

    Raises:
        RuntimeError: Something else holds that name in this PEFT, or it cannot be registered.
    """
    member = add_peft_type()
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if present is SVDCoefficientConfig:
        return
    if not hasattr(BaseTuner, "_get_adapter_state_dict"):
        raise RuntimeError(_cannot_register("it does not let a method choose what of its state is saved"))
    if present is not None:
        raise RuntimeError(_cannot_register(f"{present.__module__}.{present.__qualname__} already holds {NAME}"))
    register_peft_method(
        name=NAME.lower(), config_cls=SVDCoefficientConfig, model_cls=SVDCoefficientModel, prefix=PREFIX
    )
    registered = (
        PEFT_TYPE_TO_CONFIG_MAPPING.get(member),
        PEFT_TYPE_TO_TUNER_MAPPING.get(member),
        PEFT_TYPE_TO_PREFIX_MAPPING.get(member),
    )
    if registered != (SVDCoefficientConfig, SVDCoefficientModel, PREFIX):
        raise RuntimeError(_cannot_register(f"after registering, its tables hold {registered}"))
    wrap_reading()
    wrap_version_check()


def _cannot_register(reason: str) -> str:
    return (
        f"samparser cannot register its tuner with PEFT {peft.__version__}: {reason}. It is tested with "
        "peft>=0.21,<0.23; install one of these."
    )


# PEFT's reading: damaged configurations are named, one of ours remembers where it lay, and versions are told


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
