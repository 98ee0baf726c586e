"""Fine-tune SAM on your own images: load, split, train, score, share.

    python examples/finetune.py --model facebook/sam-vit-base --data path/to/data --output_dir runs/mine

`--data` is a folder in any layout that samparser reads (COCO JSON, images + masks, VOC, NIfTI, ...); look at it first
with `samparser data check path/to/data`. `--help` lists every setting. Run it again with `--resume` after a crash.
On several GPUs: `accelerate launch examples/finetune.py ...`.
"""

import sys
from dataclasses import asdict, dataclass, field

from transformers import HfArgumentParser

import samparser
from samparser.data import DataSettings, open_dataset
from samparser.methods import describe, save_trained
from samparser.prompts import PromptSettings
from samparser.sam import load_sam
from samparser.training import EvalSettings, TrainSettings, train, verdict


@dataclass(frozen=True)
class Arguments:
    """Model, method and where the results go."""

    model: str = field(metadata={"help": "The base SAM: a local checkpoint folder or a hub id."})
    method: str = field(default="samparser", metadata={"help": "What is trained; `samparser methods` lists them."})
    eval_split: str = field(default="val", metadata={"help": "Split to score on."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in --output_dir."})


def main(
    arguments: Arguments, data: DataSettings, prompts: PromptSettings, settings: TrainSettings, scoring: EvalSettings
) -> None:
    """Tunes SAM on one data set, then prints the scores on the images held out."""
    base, processor = load_sam(arguments.model)
    train_set = open_dataset(data, "train")
    eval_set = open_dataset(data, arguments.eval_split)
    model = samparser.build(arguments.method, base)
    print(describe(model))
    result = train(
        model,
        processor,
        train_set,
        eval_set,
        settings,
        prompts=prompts,
        eval_settings=scoring,
        resume=arguments.resume,
        context={"model": arguments.model, "method": arguments.method, "data": asdict(data)},
        save=save_trained,
    )
    print(result.scores)
    if result.before is not None and result.scores is not None:
        print(verdict(result.before, result.scores))
    print(f"adapter: {result.folder.adapter}")


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, DataSettings, PromptSettings, TrainSettings, EvalSettings))
    main(*parser.parse_args_into_dataclasses(args=sys.argv[1:]))
