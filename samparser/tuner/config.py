"""What a user can choose: the fields of `SVDCoefficientConfig`, their help and their validation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType

from .adapter_file import AdapterSource
from .card import write_card
from .functional import Form

FORMAT_VERSION = 1
"""The version of the adapter format that this release writes, and the newest it reads."""

Trainable = Literal["coefficients", "bases", "both"]
Parametrization = Literal["absolute", "relative"]
Bias = Literal["none", "all", "svd_coefficient_only"]
BaseCheck = Literal["refuse", "warn"]


@dataclass
class SVDCoefficientConfig(PeftConfig):
    """Configuration of the SVD coefficient tuner (SAM-PARSER, https://arxiv.org/abs/2308.14604).

    Each targeted weight, read as a matrix (out, fan_in), is split once as ``W = U diag(p0) Vh`` and becomes
    ``W + scaling * U diag(p - p0) Vh``; by default only ``p``, of shape (rank,) with rank = min(out, fan_in), is
    trained.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = get_peft_model(net, SVDCoefficientConfig(target_modules="all-linear"))
        >>> model.print_trainable_parameters()
        trainable params: 6 || all params: 52 || trainable%: 11.5385

    Raises:
        ValueError: A field has a value that is not possible, a field is not known, or the adapter was written in a
            newer format than this release reads.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "The modules to adapt: names of nn.Linear, nn.Conv2d or transformers Conv1D layers, or of modules "
            "that contain some (['neck'] takes every supported layer below a module called neck), a regular expression "
            "that has to match a module's whole name, or 'all-linear'. None uses the default of the model's type."
        },
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to leave as they are, matched like target_modules; a module that contains others excludes "
            "all of them."
        },
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata={
            "help": "Adapt only the layers with these indices, read from a module's name (layers.3.attn has index 3). "
            "Needs target_modules as a list."
        },
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The name in front of the index that layers_to_transform means ('layers' in layers.3.attn), where "
            "a module's name holds several. Needs layers_to_transform."
        },
    )
    trainable: Trainable = field(
        default="coefficients",
        metadata={
            "help": "What to train: 'coefficients' (p, the method), 'bases' (U and Vh at fixed p0) or 'both'. Bases "
            "have rank * (out + fan_in) numbers a layer and are saved with the adapter."
        },
    )
    parametrization: Parametrization = field(
        default="absolute",
        metadata={
            "help": "'absolute' trains p itself, as the paper does: one learning rate moves every coefficient by the "
            "same amount. 'relative' trains d in p = p0 * (1 + d), which moves large coefficients more and cannot move "
            "those that are zero."
        },
    )
    rank: int | None = field(
        default=None,
        metadata={
            "help": "Train only the leading `rank` coefficients of each layer, those of the largest singular values; "
            "layers with fewer train all of theirs. None trains all."
        },
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Ranks of single layers, by name or regular expression; they go before `rank`."},
    )
    scaling: float = field(
        default=1.0,
        metadata={"help": "Factor on the change p - p0. Other values than 1 also scale the gradient of p."},
    )
    bias: Bias = field(
        default="none",
        metadata={
            "help": "Also train biases: 'none', 'all' of the model, or 'svd_coefficient_only', those of the target "
            "modules. Trained biases live in the base model, so disabling or unmerging the adapter leaves them trained."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules to train in full and save with the adapter, such as ['mask_decoder']. Their layers are "
            "never targeted as well."
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "True starts at the base model's weights. False starts at random coefficients drawn from torch's "
            "generator, which is of use in tests only."
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={
            "help": "The target weights are stored as (in, out). Found out by itself for transformers' Conv1D (GPT-2)."
        },
    )
    form: Form = field(
        default="auto",
        metadata={
            "help": "How a layer computes in training. 'factored': U (p * (Vh x)), without a gradient of the weight; "
            "'rebuilt': with W + U diag(p - p0) Vh, formed in every step; 'auto': the one that costs less for the "
            "shapes at hand. Both give the same up to rounding. In evaluation the weight is formed once either way."
        },
    )
    save_basis: bool = field(
        default=False,
        metadata={
            "help": "Save U and Vh with the adapter, so that it gives the same change of the weight on any machine and "
            "base model, at (out + fan_in) * rank * 4 bytes a layer instead of 4 * rank."
        },
    )
    base_check: BaseCheck = field(
        default="refuse",
        metadata={
            "help": "What to do when an adapter is loaded on other base weights than it was trained on: 'refuse', or "
            "'warn' and go on. Never saved: every loading decides anew."
        },
    )
    base_record: dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Written when an adapter is saved, one entry a layer: a fingerprint of the base weight and p0. "
            "Loading compares it with the base model."
        },
    )
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the adapter format."})

    def __new__(cls, *args: Any, **kwargs: Any) -> SVDCoefficientConfig:
        # PEFT drops unknown fields with a warning. Here a field can change what the weights mean, so none is dropped.
        known = {f.name for f in fields(cls)} if "__dataclass_fields__" in cls.__dict__ else set(kwargs)
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(
                f"SVDCoefficientConfig has no field {', '.join(map(repr, unknown))}. Its fields are "
                f"{', '.join(sorted(known))}. If this is a saved adapter, it was written by a newer samparser or PEFT "
                f"(peft_version in its adapter_config.json: {kwargs.get('peft_version')}): upgrade them."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.SVD_COEFFICIENT
        # Not fields, so never saved: where this was read from, and the record of the model that is being saved.
        self._source: AdapterSource | None = None
        self._record_to_save: dict[str, dict[str, Any]] | None = None
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"The adapter has format version {self.format_version}; this samparser reads up to {FORMAT_VERSION}. "
                "Upgrade samparser to load it."
            )
        self._check_choices()
        self._check_targets()
        self._check_ranks()
        if self.trainable == "bases" and self.parametrization == "relative":
            raise ValueError(
                "parametrization='relative' says how coefficients are trained, but trainable='bases' trains none. Use "
                "trainable='both' or leave parametrization='absolute'."
            )

        if self.form == "factored" and (self.trainable != "coefficients" or self.save_basis):
            what = "save_basis=True" if self.save_basis else f"trainable={self.trainable!r}"
            raise ValueError(
                f"form='factored' uses the bases of the layer, but {what} gives the adapter bases of its own. Leave "
                "form='auto'."
            )

    def _check_choices(self) -> None:
        choices = {"trainable": Trainable, "parametrization": Parametrization, "bias": Bias}
        choices |= {"base_check": BaseCheck, "form": Form}
        for name, literal in choices.items():
            value = getattr(self, name)
            if value not in get_args(literal):
                possible = ", ".join(map(repr, get_args(literal)))
                raise ValueError(f"{name}={value!r} is not possible; choose one of {possible}.")
        if not isinstance(self.scaling, (int, float)) or not abs(self.scaling) < float("inf"):
            raise ValueError(f"scaling={self.scaling!r} is not a finite number.")

    def _check_targets(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, set)):
                if name == "target_modules" and not value:
                    raise ValueError(
                        "target_modules is empty: name at least one layer or container such as 'neck', or leave it out "
                        "for the default of the model's type."
                    )
                if not all(isinstance(item, str) and item for item in value):
                    raise ValueError(f"{name}={value!r} has to hold names of modules, not empty and of type str.")
                setattr(self, name, set(value))
            elif value == "":
                raise ValueError(f"{name} is an empty string; it names no module.")
            elif isinstance(value, str):
                try:
                    re.compile(value)
                except re.error as error:
                    raise ValueError(
                        f"{name}={value!r} is a string and so a regular expression, but not a valid one: {error}. "
                        "Use a list for names."
                    ) from error
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} needs target_modules as a list of names, but it is "
                f"the string {self.target_modules!r}. Put the layer indices into the regular expression instead."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} has no effect without layers_to_transform.")

    def _check_ranks(self) -> None:
        given = {"rank": self.rank, **{f"rank_pattern[{key!r}]": rank for key, rank in self.rank_pattern.items()}}
        for where, rank in given.items():
            if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
                raise ValueError(f"{where}={rank!r} has to be a whole number of at least 1.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved: sets sorted, so that equal configurations give equal files."""
        saved = super().to_dict()
        del saved["base_check"]
        saved["base_record"] = self._record_to_save or saved["base_record"]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in saved.items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json and, where the adapter's weights lie beside it, the model card."""
        super().save_pretrained(save_directory, **kwargs)
        if (Path(save_directory) / SAFETENSORS_WEIGHTS_NAME).is_file():
            write_card(save_directory)
