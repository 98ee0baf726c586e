"""Configuration of the tuner: the names it goes by in PEFT, its fields and their checks, where it was read from."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samparser._files import AdapterSource, add_to_card
from samparser._hashing import hash_of_tensors
from samparser._untrusted import (
    names_or_pattern,
    refuse_invalid,
    refuse_other_choices,
    refuse_other_counts,
    refuse_other_types,
    refuse_slow,
    with_file,
)

from .choices import PLAIN, check_together

NAME = "SVD_COEFFICIENT"
"""The name of the method in PEFT's registry and in every adapter_config.json."""
PREFIX = "svd_coefficient_"
"""The start of every adapter parameter's name. transformers derives it from the type's name: no other works there."""

FORMAT_VERSION = 1
"""The version of the adapter format that this release writes, and the newest it reads."""

Trainable = Literal["coefficients", "bases", "both", "expansion"]
Parametrization = Literal["absolute", "offset", "relative"]
ExpansionKind = Literal["pairs", "gradient", "random", "mixed"]
StoredDtype = Literal["float32", "float16"]
Bias = Literal["none", "all", "svd_coefficient_only"]
BaseCheck = Literal["refuse", "warn"]
Form = Literal["auto", "factored", "rebuilt"]

_CHOICES = {"trainable": Trainable, "parametrization": Parametrization, "bias": Bias, "base_check": BaseCheck}
_CHOICES |= {"form": Form, "expansion_dtype": StoredDtype}

COMPILED = "_orig_mod."
"""What `torch.compile(module)` puts into the names below a module. Saved names are without it."""
EMBEDDINGS = frozenset(EMBEDDING_LAYER_NAMES)
"""The names of embeddings, which PEFT saves along where they were resized."""

# PEFT's reader itself: `registration` wraps it for those who call it on PeftConfig.
_READ = PeftConfig.from_pretrained.__func__
_CARD_LINE = "This adapter needs `import samparser` (`pip install samparser`) before PEFT can load it."


@dataclass
class SVDCoefficientConfig(PeftConfig):
    """Configuration of the SVD coefficient tuner (SAM-PARSER, https://arxiv.org/abs/2308.14604).

    Each targeted weight `W`, read as a matrix (out, fan_in), becomes `W + scaling * U diag(p - p0) Vh`; by default
    only `p`, of shape (rank,) with rank = min(out, fan_in), is trained. The derivation is in
    `samparser.tuner.factors`. Each field's `metadata["help"]` says what it does.

    Raises:
        ValueError: A field has a value that is not possible, or the adapter was written in a newer format than this
            release reads.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> model = get_peft_model(net, SVDCoefficientConfig(target_modules="all-linear"))
        >>> model.print_trainable_parameters()
        trainable params: 6 || all params: 52 || trainable%: 11.5385
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "The modules to adapt: names of nn.Linear, nn.Conv2d, nn.ConvTranspose2d or transformers Conv1D "
            "layers, or of modules that contain some (['neck'] takes every supported layer below a module called "
            "neck), a regular expression that has to match a module's whole name, or 'all-linear'. None takes the "
            "default of the model's type, which for SAM and its kin is the neck, and is refused for others."
        },
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to leave as they are, matched like target_modules; a module that contains others excludes "
            "all of them. None excludes nothing."
        },
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata={
            "help": "Adapt only the layers with these indices, counted from 0 and read from a module's name "
            "(layers.3.attn has index 3). Needs target_modules as a list. None takes all."
        },
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The name in front of the index that layers_to_transform means ('layers' in layers.3.attn), where "
            "a module's name holds several. Needs layers_to_transform. None takes the first index in a name."
        },
    )
    trainable: Trainable = field(
        default="coefficients",
        metadata={
            "help": "What to train: 'coefficients' (p, the method: min(out, fan_in) numbers a layer), 'bases' (U and "
            "Vh at fixed p0), 'both', or 'expansion' (its terms alone). Bases have rank * (out + fan_in) numbers."
        },
    )
    parametrization: Parametrization = field(
        default="absolute",
        metadata={
            "help": "'absolute' trains p itself, as the paper does: one learning rate moves every coefficient by the "
            "same amount, and weight decay pulls it to zero. 'offset' trains d in p = p0 + d, which decay pulls to the "
            "start. 'relative' trains d in p = p0 * (1 + d), so that a rate of 1e-2 is the same percentage of each; "
            "those that are zero cannot move. The unit of an expansion is 1, or with 'relative' the mean of p0."
        },
    )
    expansion: ExpansionKind | None = field(
        default=None,
        metadata={
            "help": "Train terms beside the coefficients, chosen by samparser.initialize_expansion: 'pairs' of the "
            "weight's bases, 'gradient' directions, stored, or 'random' ones as a control; sums may be 'mixed'."
        },
    )
    expansion_rank: int | dict[str, int] | None = field(
        default=None,
        metadata={
            "help": "Terms of each layer, or numbers by layers' names or regular expressions, others having none. None "
            "is 64 pairs or 4 directions, or what a layer allows."
        },
    )
    expansion_dtype: StoredDtype = field(
        default="float32",
        metadata={"help": "How the directions of an expansion are stored: 'float32', or 'float16' in half the room."},
    )
    top: float | None = field(
        default=None,
        metadata={
            "help": "Train only the leading coefficients of each layer, a share such as 0.25 or a number as `rank` is. "
            "The rest stays at p0 and is not saved. None trains all."
        },
    )
    rank: int | None = field(
        default=None,
        metadata={
            "help": "Train only this many leading coefficients of each layer, those of the largest singular values; "
            "layers with fewer train all of theirs. None trains all."
        },
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Ranks of single layers, by name or regular expression; they go before `rank`. Empty: none."},
    )
    scaling: float = field(
        default=1.0,
        metadata={
            "help": "Factor on the change p - p0: 1 applies it as trained, 0 gives the base model. Other values than 1 "
            "in training also scale the gradient of p."
        },
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
            "help": "Modules to train in full and save with the adapter, such as ['mask_decoder'] (4,058,340 "
            "parameters in SAM). Their layers are never targeted as well. None trains no module in full."
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "True starts at the base model's weights. False moves every trained number by about a tenth, drawn "
            "from torch's generator, which is of use in tests only."
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={
            "help": "The target weights are stored as (in, out). Found out by itself for transformers' Conv1D (GPT-2), "
            "and set back with a warning for layers that store (out, in): leave it as it is."
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
            "base model, at (out + fan_in) * rank * 4 bytes a layer instead of 4 * rank. Off, they are computed from "
            "the base weight again, and coefficients of equal singular values move together."
        },
    )
    base_check: BaseCheck = field(
        default="refuse",
        metadata={
            "help": "What to do when an adapter is loaded on other base weights than it was trained on: 'refuse', or "
            "'warn' and go on, with scores that nobody has measured. Never saved: every loading decides anew."
        },
    )
    base_record: dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Written when an adapter is saved, about 250 bytes and p0 a layer: a fingerprint of the base "
            "weight it was trained on. Loading compares it with the base model; None compares nothing."
        },
    )
    expansion_record: dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Written when an adapter is saved: the terms that each layer got, and the share of the signal that "
            "was measured. None: they have not been chosen."
        },
    )
    format_version: int = field(
        default=FORMAT_VERSION,
        metadata={
            "help": "Version of the adapter format, written when saving; a newer one than this release's is refused."
        },
    )
    weights_sha256: str | None = field(
        default=None,
        metadata={
            "help": "Written when an adapter is saved: a hash of the names and values in its file. Loading refuses a "
            "file that has others; None compares nothing. Reading the configuration and saving it again accepts a file "
            "that was edited on purpose."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.SVD_COEFFICIENT
        # Not fields, so never saved: where this was read from, and the record of the model that is being saved.
        self._source: AdapterSource | None = None
        self._record_to_save: dict[str, dict[str, Any]] | None = None
        self._expansion_to_save: dict[str, dict[str, Any]] | None = None
        self._hash_to_save: str | None = None
        refuse_other_choices(self, _CHOICES)
        if not isinstance(self.scaling, (int, float)) or not abs(self.scaling) <= sys.float_info.max:
            raise ValueError(f"scaling={self.scaling!r} is not a finite number.")
        refuse_other_types(self)
        if self.base_record:
            self.base_record = {name.replace(COMPILED, ""): record for name, record in self.base_record.items()}
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"The adapter has format version {self.format_version}; this samparser reads up to {FORMAT_VERSION}. "
                "Upgrade samparser to load it."
            )
        self._check_targets()
        refuse_other_counts({"rank": self.rank, **{f"rank_pattern[{k!r}]": r for k, r in self.rank_pattern.items()}})
        if any(getattr(self, name) != usual for name, usual in PLAIN.items()):
            check_together(self)

    @property
    def trains_bases(self) -> bool:
        """Whether U and Vh are trained."""
        return self.trainable in ("bases", "both")

    @property
    def has_own_bases(self) -> bool:
        """Whether the adapter brings U and Vh."""
        return self.save_basis or self.trains_bases

    def leading(self, layer: str, full: int) -> int:
        """Give the number of leading coefficients that the adapter changes in a layer that has `full`."""
        count = self.rank_pattern.get(get_pattern_key(self.rank_pattern.keys(), layer), self.rank)
        if count is None and self.top is not None:
            count = max(1, round(self.top * full)) if isinstance(self.top, float) and self.top <= 1 else int(self.top)
        return min(count or full, full)

    def _check_targets(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            setattr(self, name, names_or_pattern(name, getattr(self, name)))
        if self.target_modules == set():
            raise ValueError(
                "target_modules is empty: name at least one layer or container such as 'neck', or leave it out for the "
                "default of the model's type."
            )
        refuse_invalid(self._patterns())
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} needs target_modules as a list of names, but it is "
                f"the string {self.target_modules!r}. Put the layer indices into the regular expression instead."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} has no effect without layers_to_transform.")

    def _patterns(self) -> list[tuple[str, str]]:
        """The regular expressions among the fields, as PEFT or we match them, each with the name of its field."""
        patterns = [(name, getattr(self, name)) for name in ("target_modules", "exclude_modules")]
        patterns = [(name, value) for name, value in patterns if isinstance(value, str)]
        of_layers = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        patterns += [("layers_pattern", pattern) for pattern in of_layers or ()]
        patterns += [("rank_pattern", pattern) for pattern in self.rank_pattern]
        counts = self.expansion_rank if isinstance(self.expansion_rank, dict) else {}
        patterns += [("expansion_rank", pattern) for pattern in counts]
        return patterns + [("modules_to_save", name) for name in self.modules_to_save or ()]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> SVDCoefficientConfig:
        """Read a configuration from a folder or the Hub; see `PeftConfig.from_pretrained`.

        The configuration remembers where it lay until it is used, so that injection can check the adapter's file beside
        it before it touches the model.

        Raises:
            ValueError: There is no configuration, or it holds something that is not possible.
        """
        try:
            config = _READ(cls, pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
            if isinstance(config, SVDCoefficientConfig):  # PEFT makes what the file says, an adapter of any method.
                config.remember_source(pretrained_model_name_or_path, subfolder, kwargs)
        except ValueError as error:
            raise with_file(error, pretrained_model_name_or_path, subfolder) from error
        return config

    def remember_source(self, name: str, subfolder: str | None, arguments: dict[str, Any]) -> None:
        """Note where this was read from; of the arguments of the reading, those of the download count.

        Raises:
            ValueError: A regular expression in the file could take too long to match.
        """
        refuse_slow(self._patterns())
        known = inspect.signature(hf_hub_download).parameters
        self._source = AdapterSource(str(name), subfolder, {key: arguments[key] for key in arguments if key in known})

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as they are saved: sets sorted, so that equal configurations give equal files."""
        saved = super().to_dict()
        del saved["base_check"]
        saved["base_record"] = self._record_to_save or saved["base_record"]
        saved["expansion_record"] = self._expansion_to_save or saved["expansion_record"]
        saved["weights_sha256"] = self._hash_to_save or saved["weights_sha256"]
        for key, value in saved.items():
            if isinstance(value, set):
                saved[key] = sorted({name.replace(COMPILED, "") for name in value})
        return saved

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json and, into the card that PEFT put beside the weights, what loading needs."""
        folder = Path(save_directory)
        weights = folder / SAFETENSORS_WEIGHTS_NAME
        if self._hash_to_save is None and weights.is_file():  # Written by itself: the file that is there is meant.
            try:
                self._hash_to_save = hash_of_weights(load_file(weights))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{weights} is not a readable safetensors file: {error}.") from error
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self._hash_to_save = None
        if not weights.is_file():
            return
        # PEFT writes one card, beside the adapter called "default" or above the folders of the others.
        for card in (folder / "README.md", folder.parent / "README.md"):
            add_to_card(card, _CARD_LINE, where="- PEFT ", unless="import samparser")


def hash_of_weights(tensors: Mapping[str, Tensor]) -> str | None:
    """Hash the names, dtypes, shapes and values of an adapter's tensors; None where some have no values here.

    Embeddings are left out: whether PEFT saves them is decided after the hash was taken.
    """
    named = {_plain_name(name): tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in named.items() if not EMBEDDINGS & set(name.split("."))}
    if any(tensor.is_meta or hasattr(tensor, "full_tensor") for tensor in named.values()):
        return None
    return hash_of_tensors(named)


def _plain_name(name: str) -> str:
    """A tensor's name without what PEFT puts in front and `torch.compile` in between."""
    return name.removeprefix("base_model.model.").replace(COMPILED, "")
