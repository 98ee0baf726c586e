"""SSDD, ships in radar images: its official release in COCO or VOC style, and COCO JSON as others pass it on."""

from __future__ import annotations

from pathlib import Path

from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError, Instance, Sample, Skipped
from ..settings import DataSettings
from . import coco_layout
from .images import IMAGE_SUFFIXES, read_image
from .paths import read_text, visible_files
from .reader import Layout, Reader
from .segmentations import BadMask, polygon_mask
from .xml_files import read_xml

# The releases with polygons; BBox_SSDD and RBox_SSDD have boxes only.
_RELEASES = ("PSeg_SSDD", "BBox_RBox_PSeg_SSDD")
_SPLITS = ("train", "val", "test")


class VocXmlReader:
    """Samples of VOC-style XML files whose objects carry a polygon: `<segm><point>x,y</point>...</segm>`.

    Args:
        annotations: Folder of the XML files.
        images: Folder of the images.
        stems: Which files to take; None takes all.
        root: Names of samples are paths relative to this folder.
        intensity: How images of more than 8 bits are shown.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        stems: list[str] | None,
        root: Path,
        intensity: Intensity = EACH_BY_ITSELF,
    ) -> None:
        self._intensity = intensity
        self.classes = {1: "ship"}
        self.skipped: list[Skipped] = []
        pictures = {path.stem: path for path in visible_files(images) if path.suffix.lower() in IMAGE_SUFFIXES}
        drawn = {path.stem: path for path in visible_files(annotations, "*.xml")}
        self._pairs = []
        for stem in sorted(drawn) if stems is None else stems:
            if stem in pictures and stem in drawn:
                self._pairs.append((pictures[stem], drawn[stem]))
            else:
                self.skipped.append(Skipped(stem, "no XML file" if stem in pictures else "image file missing"))
        if not self._pairs:
            raise DataError(f"None of the XML files of {annotations} has an image in {images}.")
        self.names: list[str] = [image.relative_to(root).as_posix() for image, _ in self._pairs]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; objects without a polygon that can be drawn are left out."""
        name, (image_path, xml_path) = self.names[index], self._pairs[index]
        image = read_image(image_path, self._intensity)
        tree = read_xml(xml_path)
        size = (tree.findtext("size/width"), tree.findtext("size/height"))
        height, width = image.shape[:2]
        if None not in size and size != (str(width), str(height)):
            raise DataError(f"{image_path} has {width} x {height} px, but {xml_path.name} says {size[0]} x {size[1]}.")
        instances, skipped = [], []
        for number, thing in enumerate(tree.iter("object"), start=1):
            polygons = [
                [value for point in outline.iter("point") for value in (point.text or "").split(",")]
                for outline in thing.iter("segm")
            ]
            try:
                if not polygons:
                    raise BadMask("no segmentation, only a box")
                mask = polygon_mask(polygons, height, width)
            except BadMask as error:
                skipped.append(Skipped(f"{name}: object {number}", str(error)))
                continue
            instance = Instance.from_mask(mask, 1, str(number))
            if instance is None:
                skipped.append(Skipped(f"{name}: object {number}", "empty mask"))
            else:
                instances.append(instance)
        return Sample(name, image, tuple(instances)), skipped


def find_style(root: Path) -> Path | None:
    """Return the coco_style or voc_style folder below a root that may be it, one release, or the whole download."""
    roots = [root, *(root / release for release in _RELEASES)]
    roots += [root / "Official-SSDD-OPEN" / release for release in _RELEASES]
    for folder in roots:
        for style in (folder / "coco_style", folder / "voc_style"):
            if style.is_dir():
                return style
    return root if _is_voc_style(root) else None


def recognise(root: Path) -> bool:
    """Tell whether this is SSDD, by the names of its folders or annotation files."""
    return root.is_dir() and (find_style(root) is not None or any(root.glob("annotations/*SSDD*.json")))


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that there are: train and test in the official release, train and val elsewhere."""
    style = find_style(root)
    if style is None or not _is_voc_style(style):
        return coco_layout.splits(style or root, settings)
    return tuple(split for split in _SPLITS if _voc_parts(style, split))


def open_reader(root: Path, settings: DataSettings, split: str | None) -> Reader:
    """Return the reader of one split."""
    style = find_style(root)
    if style is None or not _is_voc_style(style):
        return coco_layout.open_reader(style or root, settings, split)
    parts = _voc_parts(style, split or "")
    if parts is None:
        raise DataError(f"{style} has no Annotations_{split} and no ImageSets/Main/{split}.txt.")
    return VocXmlReader(*parts, root, settings.intensity)


def _is_voc_style(folder: Path) -> bool:
    return folder.name == "voc_style" or (any(folder.glob("Annotations*")) and any(folder.glob("JPEGImages*")))


def _voc_parts(style: Path, split: str) -> tuple[Path, Path, list[str] | None] | None:
    """Return the folders of annotations and images, and the list of a split; None if the split is not there."""
    annotations, images = style / f"Annotations_{split}", style / f"JPEGImages_{split}"
    listed = style / "ImageSets" / "Main" / f"{split}.txt"
    whole = style / "JPEGImages"
    if annotations.is_dir() and (images.is_dir() or whole.is_dir()):
        return annotations, images if images.is_dir() else whole, None
    if listed.is_file() and (style / "Annotations").is_dir() and whole.is_dir():
        return style / "Annotations", whole, read_text(listed).split()
    return None


LAYOUT = Layout(
    "SSDD: PSeg_SSDD/{coco_style,voc_style}, or annotations/SSDD_instances_{train,val}.json",
    recognise,
    splits,
    open_reader,
)
