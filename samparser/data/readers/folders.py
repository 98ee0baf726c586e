"""A folder of images beside a folder of masks: anyone's own data, and the WHU building set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError, Sample, Skipped
from ..settings import DataSettings
from .images import IMAGE_SUFFIXES, read_image
from .labels import LabelRules, parse_class_names
from .paths import is_hidden, visible_files
from .reader import Layout
from .split_folders import SPLIT_FOLDERS

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "annotations")
_MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "-mask")
_IMAGE_ENDINGS = ("", "_sat", "_image", "_img")
_MASK_SUFFIXES = IMAGE_SUFFIXES | {".gif"}


class FolderReader:
    """Samples of image files with a mask file of the same name each.

    A mask's name may add _mask, _label, _gt or _seg to the image's, in any case, and may have another suffix. Both may
    lie in one folder: a_sat.jpg beside a_mask.png.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        root: Names of samples are paths relative to this folder.
        rules: What the masks' values mean.
        intensity: How images of more than 8 bits are shown.
    """

    def __init__(
        self, images: Path, masks: Path, root: Path, rules: LabelRules, intensity: Intensity = EACH_BY_ITSELF
    ) -> None:
        self.classes = rules.table()
        self.skipped: list[Skipped] = []
        self._rules = rules
        self._intensity = intensity
        self._pairs = self._pair(images, masks)
        self.names: list[str] = [image.relative_to(root).as_posix() for image, _ in self._pairs]

    def _pair(self, images: Path, masks: Path) -> list[tuple[Path, Path]]:
        pictures, drawn = _by_stem(images, IMAGE_SUFFIXES), _by_stem(masks, _MASK_SUFFIXES)
        if images.resolve() == masks.resolve():
            # One folder for both: what has a partner under its name without _mask is a mask.
            partners = {name for stem in pictures for name in _mask_names(stem) if name != stem}
            of_masks = {stem for stem in drawn if stem.lower() in {name.lower() for name in partners}}
            pictures = {stem: paths for stem, paths in pictures.items() if stem not in of_masks}
            drawn = {stem: paths for stem, paths in drawn.items() if stem in of_masks}
        in_any_case: dict[str, list[str]] = defaultdict(list)
        for stem in drawn:
            in_any_case[stem.lower()].append(stem)
        pairs: list[tuple[Path, Path]] = []
        used: set[str] = set()
        for stem, paths in sorted(pictures.items()):
            names = [name for name in _mask_names(stem) if name in drawn]
            names = names or [one for name in _mask_names(stem) for one in in_any_case.get(name.lower(), [])]
            used |= set(names)
            found = [path for name in names[:1] for path in drawn[name]]
            if len(paths) > 1:
                self.skipped += [Skipped(str(path), "several image files of one name") for path in paths]
            elif not found:
                self.skipped.append(Skipped(str(paths[0]), "no mask file"))
            elif len(found) > 1:
                self.skipped.append(Skipped(str(paths[0]), "several mask files of one name"))
            else:
                pairs.append((paths[0], found[0]))
        self.skipped += [
            Skipped(str(path), "mask without an image") for stem in sorted(drawn.keys() - used) for path in drawn[stem]
        ]
        if not pairs:
            raise DataError(
                f"No image of {images} has a mask in {masks}. Images are named like "
                f"{_example(pictures)}, masks like {_example(drawn)}; a pair must have the same name, apart from the "
                f"suffix and endings such as _mask."
            )
        return pairs

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; DataError when image and mask differ in size or the mask's values mean nothing."""
        image_path, mask_path = self._pairs[index]
        image = read_image(image_path, self._intensity)
        instances, void, size = self._rules.split(mask_path)
        if size != image.shape[:2]:
            raise DataError(
                f"{mask_path} has {size[1]} x {size[0]} px, but its image {image_path.name} has {image.shape[1]} x "
                f"{image.shape[0]}. Masks must have their image's size; resize with nearest neighbour, or look for an "
                f"EXIF orientation in the image."
            )
        return Sample(self.names[index], image, tuple(instances), void), []


def _mask_names(stem: str) -> Iterator[str]:
    """Yield the names, without suffix, that the mask of an image may have."""
    for ending in _IMAGE_ENDINGS:
        if stem.lower().endswith(ending):
            base = stem[: len(stem) - len(ending)]
            yield from (base + mask_ending for mask_ending in _MASK_ENDINGS)


def _by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """Return the image files of a folder and those below it: path without suffix -> files; a.jpg.png counts as a."""
    found = defaultdict(list)
    for path in visible_files(folder):
        if path.suffix.lower() in suffixes:
            stem = path.relative_to(folder).with_suffix("")
            found[(stem.with_suffix("") if stem.suffix.lower() in IMAGE_SUFFIXES else stem).as_posix()].append(path)
    return found


def _example(files: dict[str, list[Path]]) -> str:
    return next((paths[0].name for paths in files.values()), "(there are none)")


def _existing(parents: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the folders of these names, in any case, that hold image files, at any depth."""
    folders = []
    for parent in parents:
        held = sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        folders += [path for name in names for path in held if path.name.lower() == name]
    return [folder for folder in folders if any(_is_image(path, folder) for path in folder.rglob("*"))]


def _is_image(path: Path, root: Path) -> bool:
    return path.suffix.lower() in _MASK_SUFFIXES and not is_hidden(path, root)


def find_folders(root: Path, settings: DataSettings, split: str | None) -> tuple[Path, Path] | None:
    """Return the folders of images and masks of a split, or of the pool for None; None if there are none."""
    if settings.images and settings.masks:
        if (split is not None) != ("{split}" in settings.images):
            return None
        pair = root / settings.images.format(split=split), root / settings.masks.format(split=split)
        return pair if pair[0].is_dir() and pair[1].is_dir() else None
    if split is None:
        images, masks = _existing([root], IMAGE_FOLDERS), _existing([root], MASK_FOLDERS)
    else:
        words = SPLIT_FOLDERS[split]
        inner = _existing([root], words)
        images = _existing(inner, IMAGE_FOLDERS) + _existing(_existing([root], IMAGE_FOLDERS), words)
        masks = _existing(inner, MASK_FOLDERS) + _existing(_existing([root], MASK_FOLDERS), words)
    return (images[0], masks[0]) if images and masks else None


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that have folders of their own; empty if the data set is one pool."""
    return tuple(split for split in SPLIT_FOLDERS if find_folders(root, settings, split))


def open_reader(root: Path, settings: DataSettings, split: str | None) -> FolderReader:
    """Return the reader of one split, or of the pool for None."""
    folders = find_folders(root, settings, split)
    if folders is None:
        if bool(settings.images) != bool(settings.masks):
            raise DataError("For a folder of masks give both settings, images and masks.")
        raise DataError(
            f"No folder of images with a folder of masks was found below {root}"
            + (f" for {settings.images} and {settings.masks}" if settings.images else "")
            + ". Expected images/ and masks/, or train/images/ and train/masks/, or name them with the images and "
            "masks settings."
        )
    classes, colours = parse_class_names(settings.class_names)
    rules = LabelRules(settings.instances, classes, colours, settings.void_value, settings.mask_threshold)
    return FolderReader(*folders, root, rules, settings.intensity)


def is_whu(root: Path) -> bool:
    """Tell whether the folder has WHU's names: {train,val,test}/{image,label}."""
    return any(
        (root / split / "image").is_dir() and (root / split / "label").is_dir() for split in ("train", "val", "test")
    )


def open_whu(root: Path, settings: DataSettings, split: str | None) -> FolderReader:
    """Return the reader of one split of the WHU building set: each connected component is a building."""
    folders = find_folders(root, settings, split)
    if folders is None:
        raise DataError(f"{root} has no {split}/image and {split}/label.")
    # Some label tiles are stored with one bit, others with 0 and 255.
    rules = LabelRules(settings.instances, {1: "building"}, threshold=settings.mask_threshold or 1)
    return FolderReader(*folders, root, rules, settings.intensity)


def _is_folders(path: Path) -> bool:
    anywhere = DataSettings(data="")
    return splits(path, anywhere) != () or find_folders(path, anywhere, None) is not None


FOLDERS = Layout(
    "a folder of images beside one of masks: images/ and masks/, each with or inside train/ and val/",
    _is_folders,
    splits,
    open_reader,
)
WHU = Layout("WHU building: {train,val,test}/{image,label}/*.tif", is_whu, splits, open_whu)
