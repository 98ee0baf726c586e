"""What the SAM families differ in: one class of small methods for each, and everything else asks it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from samparser._words import shortened
from samparser.sam.frame import Frame
from samparser.sam.modes import evaluating, neck_input
from samparser.sam.quiet import quiet_transformers
from samparser.sam.wrapped import plain_model

Features = tuple[Tensor, ...]
"""What the encoder gives for a batch of images before anything that is tuned: tensors with a leading batch axis."""


class IncompleteCheckpointError(ValueError):
    """A checkpoint lacks tensors of its model; the message says which."""


@dataclass(frozen=True)
class Rows:
    """Rows of a linear layer's weight and bias: the outputs that are a query, key, value or result.

    Attributes:
        name: Full name of the layer in the plain model.
        linear: The layer, an `nn.Linear` unless it carries an adapter.
        rows: Which of its outputs.
    """

    name: str
    linear: nn.Module
    rows: slice


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of the image encoder. Fused projections are rows of one layer, separate ones whole layers.

    Attributes:
        name: Full name in the plain model.
        module: The attention layer.
        query: Where its queries are made.
        key: Where its keys are made.
        value: Where its values are made.
        out: Where the heads are joined.
    """

    name: str
    module: nn.Module
    query: Rows
    key: Rows
    value: Rows
    out: Rows

    @property
    def layer_name(self) -> str:
        """Full name of the transformer layer around it."""
        return self.name.rpartition(".")[0]


class Family(ABC):
    """One architecture of the SAM line in transformers. Without state: every method is given its model.

    Models are plain ones or wrapped by PEFT, tuned or not; names of modules are those of the plain model.

    Attributes:
        model_types: Every `config.model_type` of the checkpoints that it loads; the first one is its models' own.
        model_class: Name of the class in transformers.
        processor_class: Name of the processor's class in transformers.
        neck: Regular expression that the full name of a convolution of the neck must match as a whole.
        neck_name: Full name of the module whose input `encode` gives.
        coefficients: Trained numbers of the neck per published size, one per singular value: min(out, in * kh * kw) of
            each convolution. For reading and testing; `count_coefficients` counts a model at hand.
        checkpoints: Published checkpoints on the Hugging Face hub, and the licence of each.
        replaces_unstable_masks: Whether the released models, in eval mode, give a single mask that is unstable away for
            one of those of other heads; `single_mask` switches that off.
        pointwise_first: Full name of the convolution that takes the first of the features, channels last, where that is
            one of 1x1: products with its frozen basis can be kept in place of the features. None: there is no such one.
        once_an_image: Share of the mask decoder's products for one prompt that an image takes once, for all of its own.
        needs_transformers: First release of transformers that has the model, and reads its checkpoints as they are.
    """

    model_types: ClassVar[tuple[str, ...]]
    model_class: ClassVar[str]
    processor_class: ClassVar[str]
    neck: ClassVar[str]
    neck_name: ClassVar[str] = "vision_encoder.neck"
    coefficients: ClassVar[Mapping[str, int]] = {}
    checkpoints: ClassVar[Mapping[str, str]] = {}
    replaces_unstable_masks: ClassVar[bool] = False
    pointwise_first: ClassVar[str | None] = None
    once_an_image: ClassVar[float] = 0.0
    needs_transformers: ClassVar[str] = "5.6"

    def check_release(self) -> None:
        """Refuse a transformers that is too old for the family.

        Raises:
            ImportError: The message names the first release that will do.
        """
        import transformers
        from packaging.version import Version

        if Version(transformers.__version__) < Version(self.needs_transformers):
            raise ImportError(
                f"{self.model_class} needs transformers {self.needs_transformers} or newer; this is "
                f'{transformers.__version__}: pip install "transformers>={self.needs_transformers}"'
            )

    @abstractmethod
    def frame(self, model_or_config: Any) -> Frame:
        """Return the frame of the input, which a model or its config decides."""

    @abstractmethod
    def processor(self, source: str | Path | None, model: nn.Module) -> Any:
        """Return the processor saved at a source, or the family's usual one for the model's input size for None.

        Raises:
            OSError: The hub could not be reached, or files are missing or damaged.
        """

    def load_model(self, source: str | Path, config: Any, **kwargs: Any) -> nn.Module:
        """Load a checkpoint in eval mode.

        Args:
            source: A local folder, or a name on the Hugging Face hub.
            config: What `AutoConfig` read there; its model type is one of `model_types`.
            **kwargs: Further arguments of `from_pretrained`, such as `dtype`.

        Raises:
            IncompleteCheckpointError: Tensors of the model are not in the checkpoint.
            Exception: As `from_pretrained` raises them.
        """
        import transformers

        model_class = getattr(transformers, self.model_class)
        with quiet_transformers():
            model, found = model_class.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **kwargs
            )
        if missing := sorted(found["missing_keys"]):
            raise IncompleteCheckpointError(
                f"{source} is incomplete: {len(missing)} tensors of {self.model_class} are not in it, first "
                f"{shortened(missing, 3)}. They would start random and ruin every mask."
            )
        # A checkpoint that serves several classes may name another one's type.
        model.config.model_type = self.model_types[0]
        # One whose config lies within another one's, as SAM 3's, does not learn where it comes from by itself: adapters
        # record it as their base.
        model.name_or_path = model.config.name_or_path = str(source)
        return model.eval()

    def model_from_config(self, config: Any) -> nn.Module:
        """Build a model of a config as `AutoConfig` reads it, on the default device, with the weights of a new one.

        Args:
            config: Of one of `model_types`; stays as it is.
        """
        import transformers

        model: Any = getattr(transformers, self.model_class)(copy.deepcopy(config))
        model.config.model_type = self.model_types[0]
        return model.eval()

    def neck_of(self, model: nn.Module) -> str:
        """Return `neck`, narrowed to the convolutions that have a part in a model's masks."""
        return self.neck

    def encode(self, model: nn.Module, pixel_values: Tensor) -> Features:
        """Return what enters the neck, without gradients and with the whole model in eval mode.

        Args:
            model: The model, with the adapters that are active.
            pixel_values: (B, 3, S, S) as the processor makes them, on the model's device and in its dtype.
        """
        plain: Any = plain_model(model)
        with evaluating(plain):
            neck = plain.get_submodule(self.neck_name)
            entering = neck_input(neck, lambda: plain.get_image_embeddings(pixel_values))
        return (entering,) if isinstance(entering, Tensor) else tuple(entering)

    @abstractmethod
    def embed(self, model: nn.Module, features: Features) -> dict[str, Any]:
        """Return what the model's forward takes in place of pixels: `image_embeddings` and the like.

        Runs the neck, and what else stands between features and mask decoder, with gradients where they are wanted.
        """

    def decode(
        self, model: nn.Module, embedded: Mapping[str, Any], prompts: Mapping[str, Tensor], multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the masks that prompts ask for, by one call of the model's forward.

        Args:
            model: The model, or a wrapper with its forward signature.
            embedded: What `embed` gave.
            prompts: `input_boxes` (B, N, 4), `input_points` (B, N, P, 2) with `input_labels` (B, N, P), coordinates in
                the input frame.
            multimask: Three masks for a prompt rather than one.

        Returns:
            Logits (B, N, M, h, w) and predicted IoUs (B, N, M), with M = 1 or 3.
        """
        output = model(**embedded, **prompts, multimask_output=multimask)
        return output.pred_masks, output.iou_scores

    def cheaper_in_a_row(self, prompts: int, images: int, most: int) -> bool:
        """Return whether decoding prompts one by one is less work than images with rows filled up to the longest.

        Args:
            prompts: How many there are in all.
            images: How many images they are of.
            most: How many the image with the most has.
        """
        return prompts < images * (self.once_an_image + most * (1 - self.once_an_image))

    def single_mask(self, model: nn.Module) -> AbstractContextManager[None]:
        """Let one mask come from the head that a mask loss trains, in eval mode too, inside the block.

        Nothing to do for families whose eval mode takes the same head as training.
        """
        return nullcontext()

    def keep_single_mask(self, model: nn.Module) -> bool:
        """Make what `single_mask` does a model's own setting, in its config too, and return whether that changed it."""
        return False

    def replaces_unstable(self, model: nn.Module) -> bool:
        """Return whether the model, as it is now, puts masks of other heads in the place of unstable ones in eval mode.

        False inside `single_mask`, and for what `keep_single_mask` has been at.
        """
        return False

    @abstractmethod
    def upstream(self, model: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
        """Return the parts before the neck by full name: all that decides `encode`, besides the image."""

    @abstractmethod
    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of each tensor of `encode` for one image, without the batch axis."""

    def embedding_shape(self, config: Any) -> tuple[int, ...] | None:
        """Return the shape of one image's `image_embeddings` where the neck alone makes them, one tensor; else None.

        They can be kept in place of the features, then, where nothing of the neck is trained.
        """
        return None

    def attention_layers(self, model: nn.Module) -> Sequence[AttentionSite]:
        """Return the attention layers of the image encoder from first to last; none where it has none."""
        return []

    def idle(self, model: nn.Module) -> tuple[str, ...]:
        """Return the full names of modules and parameters that no mask depends on, whatever the prompt: none."""
        return ()


def config_of(model_or_config: Any) -> Any:
    """Return the config of a model, wrapped or not; a config as it is."""
    if isinstance(model_or_config, torch.nn.Module):
        return plain_model(model_or_config).config
    return model_or_config
