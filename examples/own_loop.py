"""SVD coefficients in a training loop that you already have: plain PyTorch, no Trainer.

    python examples/own_loop.py --steps 20

Three lines are samparser's; everything else is an ordinary loop over a SamModel with box prompts.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import get_peft_model
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import HfArgumentParser, SamModel, SamProcessor

from samparser import SVDCoefficientConfig
from samparser.data import DataSettings, open_dataset
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.scoring import segmentation_loss

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Arguments:
    """What the loop runs on."""

    model: str = field(default=str(ASSETS / "small-sam"), metadata={"help": "A SAM checkpoint."})
    data: str = field(default=str(ASSETS / "nuclei"), metadata={"help": "A data set in COCO's layout."})
    output: str = field(default="own-loop-adapter", metadata={"help": "Folder for the adapter."})
    steps: int = field(default=20, metadata={"help": "Optimizer steps, one image each."})


def main(arguments: Arguments) -> None:
    """Trains for some steps and saves the adapter."""
    sam = SamModel.from_pretrained(arguments.model)
    processor = SamProcessor.from_pretrained(arguments.model)
    model = get_peft_model(sam, SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))
    model.print_trainable_parameters()

    samples = open_dataset(DataSettings(data=arguments.data), "train")
    batches = DataLoader(
        PromptedDataset(samples, processor, PromptSettings(jitter_max=2, max_instances=16)),
        batch_size=1,
        shuffle=True,
        collate_fn=collate,
    )
    coefficients = [p for n, p in model.named_parameters() if p.requires_grad and "svd_coefficient" in n]
    weights = [p for n, p in model.named_parameters() if p.requires_grad and "svd_coefficient" not in n]
    # A coefficient scales a whole direction of the weight: it takes a much larger learning rate than a weight.
    optimizer = torch.optim.Adam([{"params": coefficients, "lr": 1e-2}, {"params": weights, "lr": 1e-4}])

    done = 0
    with tqdm(total=arguments.steps) as bar:
        while done < arguments.steps:
            for batch in batches:
                output = model(
                    pixel_values=batch["pixel_values"], input_boxes=batch["input_boxes"], multimask_output=False
                )
                logits = output.pred_masks[:, :, 0]
                loss = segmentation_loss(
                    logits, batch["masks"], batch["instance_valid"], batch["pixel_valid"], lambda_focal=0.5
                ).total
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if done == arguments.steps:
                    break
    model.save_pretrained(arguments.output)
    print(f"adapter: {arguments.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses(args=sys.argv[1:]))
