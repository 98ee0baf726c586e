"""Mirrored samples: image, masks, boxes and void pixels alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .sample import Instance, Sample


def flip_sample(sample: Sample) -> Sample:
    """The sample mirrored left to right; its name stays."""
    width = sample.size[1]
    instances = tuple(
        Instance(
            box=(width - instance.box[2], instance.box[1], width - instance.box[0], instance.box[3]),
            mask=np.ascontiguousarray(instance.mask[:, ::-1]),
            class_id=instance.class_id,
            id=instance.id,
        )
        for instance in sample.instances
    )
    return Sample(
        name=sample.name,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        instances=instances,
        void=None if sample.void is None else np.ascontiguousarray(sample.void[:, ::-1]),
        volume=sample.volume,
        slice_index=sample.slice_index,
    )


class Flipped(Sequence[Sample]):
    """Every sample of a data set mirrored."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return flip_sample(self.dataset[index])


class RandomlyFlipped(Sequence[Sample]):
    """Each sample as it is or mirrored, with equal chances, a function of (seed, epoch, index) alone.

    Attributes that it lacks, such as ``names`` and ``classes``, are the data set's.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draws anew from here on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self.dataset[index]
        # The third number keeps this draw apart from that of the prompts, which is seeded with (seed, epoch, index).
        mirrored = np.random.default_rng([self.seed, self.epoch, index % len(self), 1]).random() < 0.5
        return flip_sample(sample) if mirrored else sample

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)
