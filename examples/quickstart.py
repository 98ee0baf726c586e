"""People draw boxes loosely: teach a SAM to cope with that by 320 numbers, on real images, in minutes on a laptop.

    python examples/quickstart.py

The small SAM and the nuclei images are in examples/assets. The script scores the model as it is on boxes that lie up
to 4 pixels outside of the nuclei, tunes 320 numbers of its neck (1.8 KB) and, beside it, its whole mask
decoder (1.5 MB), scores both, loads the adapter again, merges it into a plain SamModel, shows that all three give the
same masks, draws a picture and prints a table. It writes to ./quickstart-output.
"""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, SamModel

import samparser
from samparser.data import DataSettings, SegmentationDataset, open_dataset
from samparser.drawing import CloseUp, draw_mistakes
from samparser.methods import describe, save_trained
from samparser.prediction import predict
from samparser.prompts import PromptSettings
from samparser.sam import load_sam
from samparser.scoring import ScoreTable
from samparser.training import EvalSettings, TrainSettings, evaluate, evaluate_baselines, train
from samparser.training.evaluation import prompts_for

ASSETS = Path(__file__).parent / "assets"
LOOSE = 4
"""Each side of a box lies 0 to 4 pixels outside of the nucleus, which is 10 to 50 pixels wide."""

PAIRS = {"expansion": "pairs", "expansion_rank": 64}
"""Beside the 192 coefficients, 64 pairs (i, j) of each convolution of the neck: terms c u_i v_j of its own bases."""


@dataclass(frozen=True)
class Arguments:
    """What the quickstart runs on."""

    model: str = field(default=str(ASSETS / "small-sam"), metadata={"help": "A SAM checkpoint."})
    data: str = field(default=str(ASSETS / "nuclei"), metadata={"help": "A data set in COCO's layout."})
    output: str = field(default="quickstart-output", metadata={"help": "Folder for all results; made anew."})
    epochs: float = field(default=4, metadata={"help": "Passes over the training images."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after so many steps; -1: after the epochs."})
    limit: int | None = field(default=None, metadata={"help": "Use only so many images of each split."})


@dataclass(frozen=True)
class Tuned:
    """A tuned model: what it trained, how well it does, and where its file lies."""

    model: Any
    scores: ScoreTable
    folder: Path
    numbers: int

    def size(self, *suffixes: str) -> int:
        """Return the bytes of the files that hold what was trained, or of those with these suffixes."""
        suffixes = suffixes or (".safetensors",)
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.suffix in suffixes)


def tune(method: str, arguments: Arguments, train_set: Any, test_set: Any, **options: Any) -> Tuned:
    """Train one method on loose boxes, from features that both methods share, and score it."""
    base, processor = load_sam(arguments.model)
    model = samparser.build(method, base, **options)
    output = Path(arguments.output)
    # No setting was chosen by scores of this run. A coefficient takes a larger rate than a weight.
    settings = TrainSettings(
        output_dir=str(output / method),
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=1e-4,
        coefficient_lr=1e-2,
        lr_scheduler_type="cosine",
        eval_strategy="no",
        score_before=False,
        logging_steps=60,
        cache=str(output / "features"),
    )
    run = train(
        model,
        processor,
        train_set,
        test_set,
        settings,
        prompts=PromptSettings(jitter_max=LOOSE, max_instances=12),
        eval_settings=EvalSettings(eval_jitter=LOOSE),
        overwrite=True,
        save=save_trained,
        figures=False,
    )
    assert run.scores is not None
    return Tuned(model, run.scores, run.folder.adapter, describe(model).total)


def merge(base: str, adapter: Path, folder: Path) -> SamModel:
    """Read base and adapter from disk and write them as one plain SamModel, which is read back."""
    tuned = PeftModel.from_pretrained(SamModel.from_pretrained(base), adapter)
    tuned.merge_and_unload().save_pretrained(folder)
    return SamModel.from_pretrained(folder).eval()


def gains(before: ScoreTable, after: ScoreTable) -> dict[str, float]:
    """Return what each image gains in mean IoU, in points."""
    first = before.image_scores()
    return {image: 100 * (score - first[image][0]) for image, (score, _) in after.image_scores().items()}


def mean_gain(points: dict[str, float]) -> str:
    """Return the mean over images, with its standard error where there are several."""
    error = f" ± {stdev(points.values()) / len(points) ** 0.5:.1f}" if len(points) > 1 else ""
    return f"{fmean(points.values()):+.1f}{error}"


def draw(
    models: dict[str, Any], processor: Any, test_set: SegmentationDataset, gained: dict[str, float], path: Path
) -> None:
    """Draw the test images with the best, the median and the worst gain, as the models see them."""
    ranked = sorted(gained, key=lambda image: (gained[image], image), reverse=True)
    rows = []
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    for what, image in chosen.items():
        index = test_set.names.index(image)
        sample = test_set[index]
        boxes = prompts_for(sample, index, EvalSettings(eval_jitter=LOOSE))["boxes"]
        masks = {name: predict(model, processor, sample.image, boxes=boxes) for name, model in models.items()}
        rows.append(CloseUp(sample.image, sample.masks, boxes, masks, f"{what}: {gained[image]:+.1f} points"))
    draw_mistakes(rows, path)


def main(arguments: Arguments) -> None:
    """Run the steps named at the top of this file."""
    console, output = Console(), Path(arguments.output)
    base, processor = load_sam(arguments.model)
    data = DataSettings(data=arguments.data, limit=arguments.limit)
    train_set, test_set = open_dataset(data, "train"), open_dataset(data, "test")
    loose = EvalSettings(eval_jitter=LOOSE)

    console.rule("1. The model as it is (zero-shot), and an ellipse in the box, which needs no model")
    before, ellipse = evaluate(base, processor, test_set, loose), evaluate_baselines(test_set, loose)["ellipse"]
    console.print(f"{loose.described()} mIoU {before.miou:.3f}, of the ellipse {ellipse.miou:.3f}")

    console.rule("2. Tune coefficients and pairs of the neck; the decoder stays frozen")
    small = tune("samparser-coefficients", arguments, train_set, test_set, parametrization="relative", **PAIRS)
    console.rule("3. Beside it, tune the whole mask decoder")
    decoder = tune("decoder", arguments, train_set, test_set)

    console.rule("4. Load the adapter again, and merge it")
    sample = test_set[0]
    reloaded = PeftModel.from_pretrained(SamModel.from_pretrained(arguments.model), small.folder).eval()
    merged = merge(arguments.model, small.folder, output / "merged")
    processor.save_pretrained(output / "merged")
    masks, again, plain = (
        predict(model, processor, sample.image, boxes=sample.boxes) for model in (small.model, reloaded, merged)
    )
    console.print(f"reloaded adapter gives the same masks: {np.array_equal(masks, again)}")
    console.print(f"merged plain {type(merged).__name__}: {(masks != plain).mean():.4%} of the mask pixels differ")

    columns = {"ellipse": ellipse, "zero-shot": before, "adapter": small.scores, "decoder": decoder.scores}
    table = Table(title=f"{len(train_set)} training images, {len(test_set)} test images, loose boxes")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("mIoU", *(f"{scores.miou:.3f}" for scores in columns.values()))
    table.add_row("F1 (= Dice)", *(f"{scores.f1:.3f}" for scores in columns.values()))
    gained = gains(before, small.scores)
    table.add_row("gain, points", "", "", mean_gain(gained), mean_gain(gains(before, decoder.scores)))
    table.add_row("trained numbers", "", "0", f"{small.numbers:,}", f"{decoder.numbers:,}")
    table.add_row("file, bytes", "", "", f"{small.size():,}", f"{decoder.size():,}")
    folders = (f"{tuned.size('.safetensors', '.json') / 1000:,.0f} KB" for tuned in (small, decoder))
    table.add_row("with settings", "", "", *folders)
    console.print(table)
    console.print(
        f"{sum(gain > 0 for gain in gained.values())} of {len(gained)} test images gain by the adapter; against the "
        f"decoder, image by image: {mean_gain(gains(decoder.scores, small.scores))} points (± standard error)"
    )
    models = {
        "zero-shot": base,
        f"adapter, {small.size():,} bytes": small.model,
        f"decoder, {decoder.size():,} bytes": decoder.model,
    }
    draw(models, processor, test_set, gained, output / "before-after.png")
    console.print(f"picture: {output / 'before-after.png'}, adapter: {small.folder}, merged: {output / 'merged'}")


if __name__ == "__main__":
    # One progress bar is enough: those of loading and saving, and other packages' deprecations, stay out of the story.
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.manual_seed(0)
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses(args=sys.argv[1:]))
