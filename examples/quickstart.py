"""From a zero-shot SAM to a tuned, shared and merged one, on real images, in a few minutes on a laptop.

    python examples/quickstart.py

The small SAM and the nuclei images are in examples/assets. The script scores the model as it is, trains SVD
coefficients and mask decoder, scores again, saves the adapter, loads it back, merges it into a plain SamModel, shows
that all three give the same masks, draws a picture and prints a table. It writes to ./quickstart-output.
"""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, SamModel

import samparser
from samparser.data import DataSettings, open_dataset
from samparser.drawing import side_by_side
from samparser.methods import describe
from samparser.prediction import predict
from samparser.prompts import PromptSettings
from samparser.sam import load_sam
from samparser.training import EvalSettings, TrainSettings, evaluate, evaluate_baselines, train

ASSETS = Path(__file__).parent / "assets"
LOOSE = 4
"""In loose boxes each side lies 0 to 4 pixels outside of the nucleus, which is 10 to 50 pixels wide."""


@dataclass(frozen=True)
class Arguments:
    """What the quickstart runs on."""

    model: str = field(default=str(ASSETS / "small-sam"), metadata={"help": "A SAM checkpoint."})
    data: str = field(default=str(ASSETS / "nuclei"), metadata={"help": "A data set in COCO's layout."})
    output: str = field(default="quickstart-output", metadata={"help": "Folder for all results; made anew."})
    epochs: float = field(default=8, metadata={"help": "Passes over the training images."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after so many steps; -1: after the epochs."})
    limit: int | None = field(default=None, metadata={"help": "Use only so many images of each split."})


def merge(base: str, adapter: Path, folder: Path) -> SamModel:
    """Reads base and adapter from disk and writes them as one plain SamModel, which it reads back."""
    tuned = PeftModel.from_pretrained(SamModel.from_pretrained(base), adapter)
    tuned.merge_and_unload().save_pretrained(folder)
    return SamModel.from_pretrained(folder).eval()


def main(arguments: Arguments) -> None:
    """Runs the steps named at the top of this file."""
    console, output = Console(), Path(arguments.output)
    base, processor = load_sam(arguments.model)
    data = DataSettings(data=arguments.data, limit=arguments.limit)
    train_set, test_set = open_dataset(data, "train"), open_dataset(data, "test")

    console.rule("1. The model as it is (zero-shot)")
    tight, loose = EvalSettings(), EvalSettings(eval_jitter=LOOSE)
    before, before_loose = (evaluate(base, processor, test_set, how) for how in (tight, loose))
    ellipse, ellipse_loose = (evaluate_baselines(test_set, how)["ellipse"] for how in (tight, loose))
    console.print(f"mIoU {before.miou:.3f}, F1 {before.f1:.3f} on {len(test_set)} images")
    # Pictures are of a typical test image: the one whose score is the median before training.
    ranked = sorted(before.image_scores().items(), key=lambda item: item[1])
    sample = test_set[test_set.names.index(ranked[len(ranked) // 2][0])]
    masks_before = predict(base, processor, sample.image, boxes=sample.boxes)

    console.rule("2. Fine-tune SVD coefficients and mask decoder")
    model = samparser.build("samparser", base, parametrization="relative")
    console.print(str(describe(model)))
    # Chosen on other nuclei images than those scored here. A coefficient takes a larger rate than a weight.
    settings = TrainSettings(
        output_dir=str(output / "run"),
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=4e-4,
        coefficient_lr=1e-2,
        lr_scheduler_type="cosine",
        eval_strategy="no",
        score_before=False,
        cache=str(output / "features"),
    )
    prompts = PromptSettings(jitter_max=0, max_instances=12)
    run = train(
        model,
        processor,
        train_set,
        test_set,
        settings,
        prompts=prompts,
        eval_settings=tight,
        overwrite=True,
    )
    after, after_loose = run.scores, evaluate(model, processor, test_set, loose)
    assert after is not None

    console.rule("3. Reload and merge")
    adapter = run.folder.adapter
    reloaded = PeftModel.from_pretrained(SamModel.from_pretrained(arguments.model), adapter).eval()
    merged = merge(arguments.model, adapter, output / "merged")
    processor.save_pretrained(output / "merged")
    masks_after = predict(model, processor, sample.image, boxes=sample.boxes)
    same_reloaded = np.array_equal(masks_after, predict(reloaded, processor, sample.image, boxes=sample.boxes))
    differing = (masks_after != predict(merged, processor, sample.image, boxes=sample.boxes)).mean()
    console.print(f"reloaded adapter gives the same masks: {same_reloaded}")
    console.print(f"merged plain {type(merged).__name__}: {differing:.4%} of the mask pixels differ (rounding)")

    side_by_side(
        sample.image,
        sample.masks,
        {"zero-shot": masks_before, "tuned": masks_after},
        output / "before-after.png",
    )
    table = Table(title=f"{len(train_set)} training images, {len(test_set)} test images")
    table.add_column("")
    for column in ("ellipse in the box", "zero-shot", "tuned"):
        table.add_column(column, justify="right")
    for label, scores in {
        "mIoU": [scored.miou for scored in (ellipse, before, after)],
        "F1 (= Dice)": [scored.f1 for scored in (ellipse, before, after)],
        f"mIoU, boxes up to {LOOSE} px too wide": [
            scored.miou for scored in (ellipse_loose, before_loose, after_loose)
        ],
    }.items():
        table.add_row(label, *(f"{score:.3f}" for score in scores))
    coefficients = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "svd_coefficient" in n)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    table.add_row("trained parameters", "", "0", f"{trained:,} ({coefficients} coefficients)")
    size = (adapter / "adapter_model.safetensors").stat().st_size
    table.add_row("adapter file", "", "", f"{size / 1024:,.0f} KB")
    console.print(table)
    gains = [score - before.image_scores()[image][0] for image, (score, _) in after.image_scores().items()]
    if len(gains) > 1:
        error = stdev(gains) / len(gains) ** 0.5
        console.print(
            f"{sum(gain > 0 for gain in gains)} of {len(gains)} test images gain; mean {fmean(gains):+.3f} with a "
            f"standard error of {error:.3f} over images"
        )
    console.print(f"picture: {output / 'before-after.png'}, adapter: {adapter}, merged model: {output / 'merged'}")


if __name__ == "__main__":
    # One progress bar is enough: those of loading and saving, and other packages' deprecations, stay out of the story.
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.manual_seed(0)
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses(args=sys.argv[1:]))
