"""Registration with PEFT: the one file that writes to PEFT's registry. Safe to run twice; fails loudly.

PEFT has no plug-in hook. `register_peft_method` takes only names that are members of its `PeftType` enumeration, and
the name of a member is what goes into adapter_config.json, so a real member has to be made first.
"""

from __future__ import annotations

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from .config import NAME, PREFIX, SVDCoefficientConfig
from .model import SVDCoefficientModel
from .peft_reading import wrap_reading, wrap_version_check


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
