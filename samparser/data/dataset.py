"""The data set that training and evaluation see, whatever layout it was read from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from .columns import ChosenNames, Column
from .readers.reader import Reader, merge_classes
from .sample import DataError, Sample, Skipped


class SegmentationDataset(Dataset[Sample]):
    """Images with instances, read when asked for: `dataset[i]` opens one image and decodes its masks.

    Args:
        parts: Readers, each with the indices of the samples to take from it, in order.
        root: Folder of the data set.
        layout: Name of the layout it was read as.
        split: "train", "val", "test" or "all".
        min_area: Instances of fewer pixels are left out.
        keep: Ids of the classes to keep; None keeps all.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Reader, Sequence[int]]],
        *,
        root: Path,
        layout: str,
        split: str,
        min_area: int = 1,
        keep: Collection[int] | None = None,
    ) -> None:
        self.root, self.layout, self.split, self.min_area = root, layout, split, min_area
        self._readers = [reader for reader, _ in parts]
        self._which = Column(np.repeat(np.arange(len(parts), dtype=np.int32), [len(indices) for _, indices in parts]))
        self._index = Column(np.concatenate([np.asarray(indices, dtype=np.int64) for _, indices in parts]))
        self._keep = None if keep is None else frozenset(keep)
        classes = merge_classes(reader.classes for reader in self._readers)
        self.classes: dict[int, str] = {i: n for i, n in classes.items() if self._keep is None or i in self._keep}
        self.skipped: list[Skipped] = [skip for reader in self._readers for skip in reader.skipped]

    @property
    def names(self) -> Sequence[str]:
        """Name of each sample, known without opening it."""
        return ChosenNames([reader.names for reader in self._readers], self._which, self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`. It may have no instance left when all of them turn out empty or too small."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index` and what was left out of it, with reasons.

        Raises:
            IndexError: There is no such sample.
            DataError: The image or its masks cannot be read, or do not fit together.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        sample, skipped = self._readers[int(self._which.values[index])].read(int(self._index.values[index]))
        kept = []
        for instance in sample.instances:
            if self._keep is not None and instance.class_id not in self._keep:
                continue
            if instance.area < self.min_area:
                skipped.append(Skipped(f"{sample.name}: {instance.id}", f"smaller than {self.min_area} px"))
                continue
            kept.append(instance)
        return replace(sample, instances=tuple(kept)), skipped

    def scanned(self) -> SegmentationDataset:
        """Return this data set without the samples that cannot be read or have no instance, reading each of them once.

        What it leaves out is added to `skipped`.
        """
        good, skipped = [], list(self.skipped)
        for index, name in enumerate(self.names):
            try:
                sample, left_out = self.examine(index)
            except DataError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            skipped += left_out
            if sample.instances:
                good.append(index)
            else:
                skipped.append(Skipped(name, "no instance"))
        return self.subset(good, skipped)

    def subset(self, indices: Sequence[int], skipped: list[Skipped] | None = None) -> SegmentationDataset:
        """Return the samples at `indices`, in that order; `skipped` replaces the list of what was left out."""
        chosen = object.__new__(SegmentationDataset)
        chosen.__dict__.update(self.__dict__)
        picks = np.asarray(indices, dtype=np.int64)
        chosen._which, chosen._index = Column(self._which.values[picks]), Column(self._index.values[picks])
        chosen.skipped = list(self.skipped if skipped is None else skipped)
        return chosen

    def __repr__(self) -> str:
        return (
            f"SegmentationDataset({str(self.root)!r}, layout={self.layout!r}, split={self.split!r}, "
            f"images={len(self)}, classes={len(self.classes)}, skipped={len(self.skipped)})"
        )
