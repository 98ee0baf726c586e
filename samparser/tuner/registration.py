"""Make PEFT know the tuner: the one file that writes to PEFT's registry. Safe to run twice; fails loudly.

PEFT has no plug-in hook. `register_peft_method` takes only names that are members of its `PeftType` enumeration, and
the name of a member is what goes into adapter_config.json, so a real member has to be made first. Two methods of PEFT
are wrapped besides, and do for all other tuners what they did before.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType, register_peft_method

if TYPE_CHECKING:
    from .config import SVDCoefficientConfig

NAME = "SVD_COEFFICIENT"
# transformers derives the prefix of an adapter's parameters from the name of the type: no other prefix works there.
PREFIX = "svd_coefficient_"


def add_peft_type() -> PeftType:
    """Return ``PeftType.SVD_COEFFICIENT``, which is added to the enumeration if this PEFT does not have it.

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
    """Register `SVDCoefficientConfig` and `SVDCoefficientModel` under ``PeftType.SVD_COEFFICIENT``.

    Raises:
        RuntimeError: Something else holds that name in this PEFT, or it cannot be registered.
    """
    from .config import SVDCoefficientConfig
    from .model import SVDCoefficientModel

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
    _remember_sources(SVDCoefficientConfig)
    _write_cards_on_push(SVDCoefficientConfig)


def _remember_sources(config_class: type[SVDCoefficientConfig]) -> None:
    """Let configurations of ours that PEFT reads know where they lie, so that injection can check the file beside them.

    transformers' ``model.load_adapter`` reads with ``PeftConfig.from_pretrained``, which makes a configuration of the
    adapter's type without calling that type's own ``from_pretrained``, then injects, and opens the file last.
    """
    from .adapter_file import AdapterSource

    read = PeftConfig.from_pretrained.__func__

    @functools.wraps(read)
    def from_pretrained(
        cls: type, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        config = read(cls, pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if isinstance(config, config_class):
            download, _, _ = cls._split_kwargs(kwargs)  # type: ignore[attr-defined]
            config._source = AdapterSource(str(pretrained_model_name_or_path), subfolder, download)
        return config

    PeftConfig.from_pretrained = classmethod(from_pretrained)


def _write_cards_on_push(config_class: type[SVDCoefficientConfig]) -> None:
    """Let ``PeftModel.push_to_hub`` upload our model card: after saving, transformers puts its own in its place."""
    from .card import write_card

    upload = PeftModel._upload_modified_files

    @functools.wraps(upload)
    def with_cards(self: PeftModel, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        folders = [Path(working_dir, "" if name == "default" else name) for name in self.peft_config]
        for folder, config in zip(folders, self.peft_config.values(), strict=True):
            if isinstance(config, config_class) and (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
                write_card(folder)
        return upload(self, working_dir, *args, **kwargs)

    PeftModel._upload_modified_files = with_cards


def _cannot_register(reason: str) -> str:
    return (
        f"samparser cannot register its tuner with PEFT {peft.__version__}: {reason}. It is tested with "
        "peft>=0.21,<0.23; install one of these."
    )
