"""Is a SAM better than its prompts? Scores a model beside the box itself and the ellipse inscribed in it.

    python examples/zero_shot.py --data examples/assets/nuclei --split test
    python examples/zero_shot.py --model facebook/sam-vit-base --data path/to/data

Prints a Markdown table: mean IoU over images (each image's mean over its instances first) and over all instances, and
by how much the model is above the two answers that need no model, with standard errors over images.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import transformers
from transformers import HfArgumentParser

from samparser.compare.statistics import Difference, paired_difference
from samparser.data import DataSettings, open_dataset
from samparser.sam import load_sam
from samparser.scoring import ScoreTable
from samparser.training import EvalSettings, evaluate, evaluate_baselines

SMALL_SAM = str(Path(__file__).parent / "assets/small-sam")
NAMES = {"model": "the model", "box": "the box itself", "ellipse": "ellipse in the box"}


@dataclass(frozen=True)
class Arguments:
    """What to score."""

    model: str = field(default=SMALL_SAM, metadata={"help": "A SAM checkpoint: a folder or a name on the hub."})
    split: str = field(default="val", metadata={"help": "The images to score: train, val or test."})


def table(scores: dict[str, ScoreTable]) -> str:
    """The scores in percent; differences are those of the means over images."""
    lines = ["| | mIoU over images | model is above by | IoU over instances |", "|---|--:|--:|--:|"]
    per_image = {name: {image: iou for image, (iou, _) in own.image_scores().items()} for name, own in scores.items()}
    for name, own in scores.items():
        over_instances = 100 * fmean(row.iou for row in own.rows if row.area)
        difference = "" if name == "model" else _text(paired_difference([per_image["model"]], [per_image[name]]))
        lines.append(f"| {NAMES[name]} | {100 * own.miou:.1f} | {difference} | {over_instances:.1f} |")
    return "\n".join(lines)


def _text(difference: Difference | None) -> str:
    if difference is None or difference.error is None:
        return "–"
    doubt = "" if difference.clear else ", not beyond chance"
    return f"{100 * difference.mean:+.1f} ± {100 * difference.error:.1f}{doubt}"


def main(arguments: Arguments, data: DataSettings, settings: EvalSettings) -> None:
    """Scores model and baselines with the same boxes and prints the table; the baselines have no answer to points."""
    model, processor = load_sam(arguments.model)
    dataset = open_dataset(data, arguments.split)
    scores = {"model": evaluate(model, processor, dataset, settings)}
    if settings.eval_prompt != "point":
        scores |= evaluate_baselines(dataset, settings)
    print(f"{len(scores['model'].image_scores())} images, {len(scores['model'].rows):,} instances\n")
    print(table(scores))


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    main(*HfArgumentParser((Arguments, DataSettings, EvalSettings)).parse_args_into_dataclasses())
