"""What each verb of the ``samparser`` command is told, beside the library's own settings."""

from dataclasses import dataclass, field
from typing import Any, Literal


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


_MODEL_HELP = "A SAM checkpoint (base or merged) or an adapter: a local folder, or a name on the Hugging Face hub."
_ADAPTER_HELP = "The adapter: its folder (for instance RUN/adapter), or its name on the Hugging Face hub."
_DEVICE_HELP = "auto: a GPU where there is one; cpu: never a GPU."


@dataclass(frozen=True)
class TrainCommand:
    """Fine-tune a SAM on a data set."""

    model: str = field(
        metadata={"help": "The base SAM: a local checkpoint folder or a hub id such as facebook/sam-vit-base."}
    )
    method: str = _option("samparser", "What is trained: `samparser methods` lists the names.")
    method_options: str = _option(
        "{}", 'Options of the method as JSON, for instance \'{"parametrization": "relative"}\'.'
    )
    train_split: str = _option("train", "Split to train on.")
    eval_split: str = _option("val", "Split to score on; 'none': do not score.")
    resume: bool = _option(False, "Go on with the run in --output_dir.")
    overwrite: bool = _option(False, "Delete the run in --output_dir and start again.")


@dataclass(frozen=True)
class EvaluateCommand:
    """Score a base model, an adapter or a merged model on a data set."""

    model: str = field(metadata={"help": _MODEL_HELP})
    base: str | None = _option(None, "Base model of the adapter; not given: the one that the adapter names.")
    split: str = _option("val", "Split to score.")
    output: str | None = _option(None, "Folder for scores.json and scores.csv (one row per instance).")
    limit_images: int | None = _option(None, "Score only so many images.")
    device: Literal["auto", "cpu"] = _option("auto", _DEVICE_HELP)


@dataclass(frozen=True)
class PredictCommand:
    """Segment images with boxes, points or a grid of points."""

    model: str = field(metadata={"help": _MODEL_HELP})
    images: list[str] = field(metadata={"help": "Image files, or folders of images."})
    output: str = field(metadata={"help": "Folder for masks (label PNG), overlays (PNG) and masks.json (COCO, RLE)."})
    base: str | None = _option(None, "Base model of the adapter; not given: the one that the adapter names.")
    boxes: str | None = _option(
        None, "JSON file {image file name: [[x0, y0, x1, y1], ...]}, pixels of the original image."
    )
    points: str | None = _option(None, "JSON file {image file name: [[x, y], ...]}, one foreground point per object.")
    grid: int | None = _option(None, "Segment everything from a grid of so many points per side; needs no prompts.")
    batch: int = _option(64, "Prompts decoded together; bounds the memory, does not change the masks.")
    device: Literal["auto", "cpu"] = _option("auto", _DEVICE_HELP)


@dataclass(frozen=True)
class MergeCommand:
    """Write an adapter and its base as one plain SamModel that needs no samparser."""

    adapter: str = field(metadata={"help": _ADAPTER_HELP})
    out: str = field(metadata={"help": "Folder for the merged checkpoint."})
    base: str | None = _option(None, "Base model; not given: the one that the adapter names.")


@dataclass(frozen=True)
class PushCommand:
    """Upload an adapter folder to the Hugging Face hub."""

    adapter: str = field(metadata={"help": "Folder of the adapter (for instance RUN/adapter)."})
    repo: str = field(metadata={"help": "Hub repository, for instance name/sam-nuclei."})
    private: bool = _option(False, "Make the repository private.")


@dataclass(frozen=True)
class CheckCommand:
    """Read a data set as training would, count, and draw a contact sheet."""

    split: str = _option("all", "Split to check; all also finds images that stand in two splits.")
    contact_sheet: str | None = _option("contact-sheet.png", "PNG with images, masks and boxes; 'none': do not draw.")


@dataclass(frozen=True)
class CompareCommand:
    """Run what is missing of an experiment (methods, data sets, seeds), then write its table."""

    experiment: str = field(metadata={"help": "Experiment file (JSON); docs/compare.md states its format."})
    output: str = field(metadata={"help": "Folder for results, run folders, cached features and the table."})
    data_root: str | None = _option(
        None, "Folder that holds the experiment's data sets; not given: the one that the experiment names, if any."
    )
    data: list[str] | None = field(default=None, metadata={"help": "Only these data sets of the experiment, by name."})
    rows: list[str] | None = field(
        default=None, metadata={"help": "Only these rows of the experiment, by name, and its reference."}
    )
    seeds: int | None = _option(None, "So many seeds; not given: those that the experiment lists.")
    limit: int | None = _option(None, "Use only so many images of each split: for a trial, in a folder of its own.")
    epochs: float | None = _option(None, "Passes over the training images in every cell: for a trial.")
    processes: int = _option(1, "Cells to run at once, each in a process with one thread; 1: in this one.")
    cost: bool = _option(True, "Also count and measure what a step of each row costs.")
