"""Map-style PyTorch data set: samples with their prompts as the tensors that SAM trains on, and their collation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from samparser.data.dataset import SegmentationDataset
from samparser.data.sample import DataError, Instance, Sample
from samparser.sam.frame import frame_of
from samparser.sam.wrapped import image_processor

from .make_prompts import make_prompts
from .resize import resize_instance, resize_mask
from .settings import PromptSettings


class PromptedDataset(Dataset[dict[str, Any]]):
    """A segmentation data set as tensors for a SAM. S is the side of the processor's frame, 1024 for SAM and SAM 2.

    Every random choice is a function of (seed, epoch, index) alone, so a resumed run and several processes agree.

    An item is a dict of

    - `pixel_values`: float32 (3, S, S), resized, normalised and padded or squashed by the processor; where the
      processor is that of a `FeatureCache`, a tuple of features instead;
    - `input_boxes`: float32 (N, 4), (x0, y0, x1, y1) in the input frame; or, for point prompts,
      `input_points`: float32 (N, P, 2), (x, y) in the input frame, and `input_labels`: int64 (N, P), all 1; where the
      settings mix them, both, and `prompt`: "boxes" or "points", which was drawn;
    - `masks`: bool (N, S, S) in the input frame, False in the padding;
    - `pixel_valid`: bool (S, S), False in the padding and where the sample is void;
    - `name`: the sample's.

    N is 0 for an image in which no instance is left; `collate` marks it as having none.

    Args:
        dataset: What to prompt.
        processor: The model's processor, or its image processor; it decides the input frame.
        prompts: Kind and size of the prompts.
        seed: Of the randomness.
    """

    def __init__(
        self,
        dataset: SegmentationDataset | Sequence[Sample],
        processor: Any,
        prompts: PromptSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.prompts, self.seed = dataset, prompts or PromptSettings(), seed
        # In shared memory: worker processes that live on from epoch to epoch read it there.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        self._epoch_of_dataset = 0
        self._images = image_processor(processor)
        self.frame = frame_of(processor)
        self._warned = False

    @property
    def epoch(self) -> int:
        """The epoch whose prompts are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other prompts from here on, also in worker processes that run already (persistent workers)."""
        self._epoch.fill_(epoch)
        self._hand_on_epoch()

    def _hand_on_epoch(self) -> int:
        """Tell the wrapped data set of the epoch, as each process has a copy of it, and return the epoch."""
        epoch = self.epoch
        if epoch != self._epoch_of_dataset:
            self._epoch_of_dataset = epoch
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
        return epoch

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A plain copy by pickle or deepcopy has left shared memory; one sent to a worker by torch has not.
        self.__dict__ |= state | {"_epoch": _shared(state["_epoch"])}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = self._hand_on_epoch()
        sample = self.dataset[index]
        rng = np.random.default_rng([self.seed, epoch, index % len(self)])
        instances = self._chosen(sample.instances, rng)
        # Computed once; masks, prompts and padding all follow it.
        resized, side = self.frame.content(sample.size), self.frame.size
        if min(resized) == 0:
            raise DataError(
                f"{sample.name} has {sample.size[1]} x {sample.size[0]} px; resized to {side} px, nothing is left of "
                f"its shorter side. Cut it into pieces or leave it out."
            )
        encoded = self._images(sample.image, return_tensors="pt", input_data_format="channels_last")
        masks = torch.zeros((len(instances), side, side), dtype=torch.bool)
        for mask, instance in zip(masks, instances, strict=True):
            resize_instance(instance, sample.size, resized, out=mask.numpy())
        valid = torch.zeros((side, side), dtype=torch.bool)
        inside = valid[: resized[0], : resized[1]]
        inside[:] = True if sample.void is None else torch.from_numpy(~resize_mask(sample.void, resized))
        self._warn_of_large_jitter(sample)
        prompts = make_prompts(instances, sample.size, self.prompts, rng, frame=self.frame)
        drawn = {"prompt": str(rng.choice(sorted(prompts)))} if len(prompts) > 1 else {}
        return {
            "pixel_values": _first(encoded["pixel_values"]),
            **_as_inputs(prompts),
            **drawn,
            "masks": masks,
            "pixel_valid": valid,
            "name": sample.name,
        }

    def _chosen(self, instances: tuple[Instance, ...], rng: np.random.Generator) -> tuple[Instance, ...]:
        most = self.prompts.max_instances
        if not most or len(instances) <= most:
            return instances
        return tuple(instances[i] for i in np.sort(rng.choice(len(instances), size=most, replace=False)))

    def _warn_of_large_jitter(self, sample: Sample) -> None:
        prompts = self.prompts
        if (
            self._warned
            or not sample.instances
            or "box" not in prompts.prompt
            or prompts.jitter_max_fraction is not None
        ):
            return
        boxes = sample.boxes
        if prompts.jitter_frame == "input":
            boxes = self.frame.to_input(boxes, sample.size)
        side = float(np.median(np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])))
        if side < prompts.jitter_max:
            self._warned = True
            warnings.warn(
                f"Box jitter of up to {prompts.jitter_max:g} px is large for these objects: the boxes of {sample.name} "
                f"have a median shorter side of {side:.0f} px, so a moved box says little about its object. Consider "
                f"jitter_max_fraction=0.1, or a smaller jitter_max.",
                stacklevel=3,
            )


def _shared(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory, if the system has any: without, there are no worker processes either."""
    try:
        return tensor.share_memory_()
    except (OSError, RuntimeError):
        return tensor


def _first(values: Any) -> Any:
    """Return the only image of a batch, or of each tensor in a tuple of batches."""
    return tuple(tensor[0] for tensor in values) if isinstance(values, tuple) else values[0]


def _stacked(values: Sequence[Any]) -> Any:
    """Stack tensors; tuples of tensors one by one."""
    if isinstance(values[0], tuple):
        return tuple(torch.stack(tensors) for tensors in zip(*values, strict=True))
    return torch.stack(list(values))


def _as_inputs(prompts: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return prompts under the names of the models' forward; all points lie on their object."""
    inputs = {f"input_{kind}": torch.from_numpy(values) for kind, values in prompts.items()}
    if "points" in prompts:
        inputs["input_labels"] = torch.ones(prompts["points"].shape[:2], dtype=torch.int64)
    return inputs


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join items of `PromptedDataset` to one batch, filled up to one number of instances; `instance_valid` says where.

    Returns:
        The items' tensors stacked, (B, ...), those of a tuple one by one, with N the most instances of any of them but
        at least 1; `instance_valid`: bool (B, N); `prompt_counts`: list of B numbers, how many are valid;
        `prompt_rows`: int64 (P,), where the P valid ones are among the B * N; `names`: list of B strings. A filled-up
        instance has an empty mask and a prompt that SAM accepts: the whole input as its box, or a foreground point at
        its origin.
    """
    most = max(1, *(len(item["masks"]) for item in items))
    size = items[0]["masks"].shape[-1]
    fill = {
        "masks": torch.zeros((), dtype=torch.bool),
        "input_boxes": torch.tensor([0.0, 0.0, size, size]),
        "input_points": torch.zeros(()),
        "input_labels": torch.ones((), dtype=torch.int64),
    }
    batch: dict[str, Any] = {key: _stacked([item[key] for item in items]) for key in ("pixel_values", "pixel_valid")}
    other = {"boxes": ("input_points", "input_labels"), "points": ("input_boxes",)}.get(items[0].get("prompt", ""), ())
    for key, value in fill.items():
        if key in items[0] and key not in other:
            first = items[0][key]
            filled = value.expand(len(items), most, *first.shape[1:]).clone()
            for row, item in zip(filled, items, strict=True):
                row[: len(item[key])] = item[key]
            batch[key] = filled
    batch["prompt_counts"] = [len(item["masks"]) for item in items]
    batch["instance_valid"] = torch.arange(most)[None, :] < torch.tensor(batch["prompt_counts"])[:, None]
    # Both found here, where an accelerator need not be waited for to know how many there are.
    batch["prompt_rows"] = batch["instance_valid"].flatten().nonzero()[:, 0]
    batch["names"] = [item["name"] for item in items]
    return batch
