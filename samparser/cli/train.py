"""`samparser train`: fine-tune a SAM on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samparser._options import option
from samparser._untrusted import parse_json
from samparser._words import count
from samparser.data import DataSettings
from samparser.methods import METHODS, build, describe, save_trained
from samparser.methods.coefficients import ChosenKind
from samparser.methods.registry import get_method
from samparser.prompts import PromptSettings
from samparser.sam import load_sam
from samparser.sam.frame_choice import ChosenFrame
from samparser.sam.loading import in_float32
from samparser.training import AlsoSettings, EvalSettings, TrainSettings, train, verdict
from samparser.tuner import coefficient_parameters

from .parser import SettingsParser
from .shared import FRAME, open_split, say


@dataclass(frozen=True)
class TrainCommand:
    """Fine-tune a SAM on a data set; the output_dir then holds settings, log, checkpoints, adapter and scores."""

    model: str = option("The base SAM: a local checkpoint folder or a hub id such as facebook/sam-vit-base.")
    method: str = option("What is trained: `samparser methods` lists the names.", "samparser")
    method_options: str = option(
        'Options of the method as JSON, for instance \'{"parametrization": "relative"}\'.', "{}"
    )
    expansion: ChosenKind | None = option(
        "Also train terms along frozen directions, chosen by one pass over training images: pairs of the layers' own "
        "bases (a few hundred bytes), gradient directions, or random ones as a control. The share of the gradient that "
        "the trained numbers see is printed before training.",
        None,
    )
    expansion_rank: int | None = option("Terms of each layer; not given: 64 pairs, or 4 directions.", None)
    frame: ChosenFrame | None = option(FRAME, None)
    train_split: str = option("Split to train on.", "train")
    eval_split: str = option("Split to score on; 'none': do not score.", "val")
    resume: bool = option("Go on with the run in --output_dir.", False)
    overwrite: bool = option("Delete the run in --output_dir and start again.", False)


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "train",
        {
            "the run": TrainCommand,
            "data": DataSettings,
            "prompts": PromptSettings,
            "training": TrainSettings,
            "scoring": EvalSettings,
            "forgetting": AlsoSettings,
        },
        example="samparser train --model facebook/sam-vit-base --data path/to/data --output_dir runs/mine",
        required=("output_dir",),
    )


def run(arguments: Sequence[str]) -> int:
    """Train, score, and say where everything is."""
    command, data, prompts, settings, scoring, other = parser().parse(arguments)
    assert settings.output_dir is not None  # required
    options = _method_options(command)
    base, processor = load_sam(command.model, frame=command.frame)
    base = in_float32(base)
    train_set = open_split(data, command.train_split)
    eval_set = None if command.eval_split == "none" else open_split(data, command.eval_split)
    other_data = other.data_settings()
    also = None if other_data is None else open_split(other_data, other.also_split, f"also {other.also_split}")
    model = build(command.method, base, **options)
    total = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    say(f"{describe(model)}; the other {total:,} parameters are frozen")
    if coefficients := {name: part for name, part in coefficient_parameters(model) if part.requires_grad}:
        trained, layers = (
            sum(part.numel() for part in coefficients.values()),
            {n.rsplit(".", 2)[0] for n in coefficients},
        )
        say(f"{count(trained, 'coefficient')} trained, the singular values of {count(len(layers), 'layer')}")
    say(f"{settings.described()} (all settings: {Path(settings.output_dir) / 'settings.json'})")
    result = train(
        model,
        processor,
        train_set,
        eval_set,
        settings,
        prompts=prompts,
        eval_settings=scoring,
        also=also,
        resume=command.resume,
        overwrite=command.overwrite,
        context={
            "model": command.model,
            "method": command.method,
            "method_options": options,
            "data": asdict(data),
            "train_split": command.train_split,
            "eval_split": command.eval_split,
            **({} if command.frame is None else {"frame": command.frame}),
            **({} if also is None else {"also": asdict(other)}),
        },
        save=save_trained,
    )
    if result.scores is not None:
        say(result.scores)
    if result.scores is not None and result.before is not None:
        say(f"\n{verdict(result.before, result.scores)}\n")
    if result.forgetting is not None:
        say(result.forgetting)
    elif result.also is not None:
        say(f"No scores of before to tell what was forgotten by; those of after are in {result.folder.also_after}.")
    say(f"{count(result.steps, 'step')}; everything is in {result.folder.path}, the adapter in {result.folder.adapter}")
    return 0


def _method_options(command: TrainCommand) -> dict[str, Any]:
    text = command.method_options
    try:
        options = parse_json(text)
    except ValueError as error:
        raise ValueError(f"--method_options is not JSON ({error}): {text[:80]!r}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--method_options must be a JSON object such as {{"rank": 64}}; got {text}')
    for name, given in (("expansion", command.expansion), ("expansion_rank", command.expansion_rank)):
        if given is None:
            continue
        if name not in get_method(command.method).options:
            able = ", ".join(method for method, known in METHODS.items() if name in known.options)
            own = ", ".join(get_method(command.method).options) or "none"
            raise ValueError(
                f"Method {command.method!r} has no --{name}; these have it: {able}. Its own options, for "
                f"--method_options, are: {own}."
            )
        if name in options:
            raise ValueError(f"{name} is given twice, as --{name} and in --method_options.")
        options[name] = given
    return options
