"""The ``samparser`` command: each verb parses its options, calls one room of the library and prints what came out.

Every option is a field of one of the library's settings dataclasses, so ``samparser VERB --help`` and the Python API
tell the same. A mistake in the input ends with one message and exit status 2; ``--traceback`` shows where it arose.
"""

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from samparser._version import __version__

from .options import (
    CheckCommand,
    CompareCommand,
    EvaluateCommand,
    MergeCommand,
    PredictCommand,
    PushCommand,
    TrainCommand,
)


def _parse(verb: str, types: Sequence[type], arguments: Sequence[str], positional: Sequence[str] = ()) -> Any:
    from transformers import HfArgumentParser

    short = f"samparser {verb} {' '.join(name.upper() for name in positional)}".rstrip() + " [options]"
    parser = HfArgumentParser(types, prog=f"samparser {verb}", usage=short, description=types[0].__doc__)
    words = list(arguments)
    # `samparser merge ADAPTER OUT` reads like a sentence; the same values can be given by name. The last position takes
    # all words up to the first option.
    leading = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    given, named = words[:leading], words[leading:]
    for number, name in enumerate(positional):
        values = given[number:] if number == len(positional) - 1 else given[number : number + 1]
        named += [f"--{name}", *values] if values else []
    if not positional and given:
        raise ValueError(f"{given[0]!r} is not an option; `samparser {verb} --help` lists the options.")
    known = {option for action in parser._actions for option in action.option_strings}
    for word in named:
        option = word.partition("=")[0]
        # Abbreviations are argparse's to resolve, and negative numbers are values.
        if re.match(r"--?[A-Za-z]", option) and not any(name.startswith(option) for name in known):
            near = get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"There is no option {option}: {hint}`samparser {verb} --help` lists the options.")
    return parser.parse_args_into_dataclasses(args=named, look_for_args_file=False)


def _say(text: object) -> None:
    """Prints on the first of the processes that ``accelerate launch`` starts."""
    if _first_process():
        print(text, flush=True)


def _first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _on_device(model: Any, device: str) -> Any:
    """The model on this process's GPU, where there is one and ``device`` allows it."""
    import torch

    if device == "cpu" or not torch.accelerator.is_available():
        return model
    from accelerate import PartialState

    return model.to(PartialState().device)


def _output_folder(path: str) -> Path:
    """The folder that results go to, looked at before the work begins rather than after it."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder to write to.")
    return folder


# Up to so many images are read once before a run, so that one bad file is left out rather than stops the run later.
_SCANNED_UP_TO = 2000


def _open_split(data: Any, split: str) -> Any:
    from samparser.data import open_dataset

    dataset = open_dataset(data, split)
    if not data.scan and len(dataset) <= _SCANNED_UP_TO:
        dataset = open_dataset(replace(data, scan=True), split)
    images, entries = _count(len(dataset), "image"), _count(len(dataset.skipped), "entry", "entries")
    _say(f"{split}: {images} of layout {dataset.layout}, {entries} skipped")
    for skip in dataset.skipped[:5]:
        _say(f"  skipped {skip.where}: {skip.why}")
    if len(dataset.skipped) > 5:
        _say("  ... `samparser data check` counts all reasons")
    return dataset


def _count(number: int, noun: str, several: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def _chosen(settings: Any) -> str:
    """What the recipe filled in and what differs from the defaults, by name."""
    from samparser.training import RECIPES

    defaults = {part.name: part.default for part in fields(settings)}
    shown = ["coefficient_lr", *RECIPES[settings.recipe]]
    shown += [name for name in settings.usual() if getattr(settings, name) != defaults[name]]
    names = [name for name in dict.fromkeys(shown) if name not in ("recipe", "output_dir")]
    return f"recipe {settings.recipe}: " + ", ".join(f"{name} {getattr(settings, name)}" for name in names)


def _train(arguments: Sequence[str]) -> int:
    from samparser.data import DataSettings
    from samparser.methods import build, describe, save_trained
    from samparser.prompts import PromptSettings
    from samparser.sam import load_sam
    from samparser.training import EvalSettings, TrainSettings, train, verdict

    types = (TrainCommand, DataSettings, PromptSettings, TrainSettings, EvalSettings)
    command, data, prompts, settings, scoring = _parse("train", types, arguments)
    if settings.output_dir is None:
        raise ValueError("--output_dir is missing: the folder that the run is to write.")
    try:
        options = json.loads(command.method_options)
    except ValueError as error:
        raise ValueError(f"--method_options is not JSON ({error}): {command.method_options!r}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--method_options must be a JSON object such as {{"rank": 64}}; got {command.method_options}')
    base, processor = load_sam(command.model)
    train_set = _open_split(data, command.train_split)
    eval_set = None if command.eval_split == "none" else _open_split(data, command.eval_split)
    model = build(command.method, base, **options)
    total = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    _say(f"{describe(model)}; the other {total:,} parameters are frozen")
    context = {
        "model": command.model,
        "method": command.method,
        "method_options": options,
        "data": asdict(data),
        "train_split": command.train_split,
        "eval_split": command.eval_split,
    }
    _say(f"{_chosen(settings)} (all settings: {Path(settings.output_dir) / 'settings.json'})")
    result = train(
        model,
        processor,
        train_set,
        eval_set,
        settings,
        prompts=prompts,
        eval_settings=scoring,
        resume=command.resume,
        overwrite=command.overwrite,
        context=context,
        save=save_trained,
    )
    if result.scores is not None:
        _say(result.scores)
    if result.scores is not None and result.before is not None:
        _say(f"\n{verdict(result.before, result.scores)}\n")
    _say(
        f"{_count(result.steps, 'step')}; everything is in {result.folder.path}, the adapter in {result.folder.adapter}"
    )
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    from samparser._files import write_text
    from samparser.data import DataSettings
    from samparser.methods import load_model
    from samparser.training import EvalSettings, evaluate
    from samparser.training.run_folder import versions

    command, data, scoring = _parse("evaluate", (EvaluateCommand, DataSettings, EvalSettings), arguments, ("model",))
    folder = _output_folder(command.output) if command.output else None
    model, processor = load_model(command.model, base=command.base)
    dataset = _open_split(data, command.split)
    table = evaluate(_on_device(model, command.device), processor, dataset, scoring, limit=command.limit_images)
    _say(table)
    if folder is not None and _first_process():
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "scores.csv")
        settings = {"command": asdict(command), "data": asdict(data), "evaluation": asdict(scoring)}
        table.to_json(folder / "scores.json")
        write_text(folder / "settings.json", json.dumps({**settings, "versions": versions()}, indent=2))
        print(f"written: {folder / 'scores.json'}, {folder / 'scores.csv'}")
    return 0


def _predict(arguments: Sequence[str]) -> int:
    from samparser.methods import load_model
    from samparser.prediction import predict_files

    (command,) = _parse("predict", (PredictCommand,), arguments, ("model", "images"))
    given = [name for name in ("boxes", "points", "grid") if getattr(command, name) is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of --boxes, --points and --grid; given: {', '.join(given) or 'none'}.")
    model, processor = load_model(command.model, base=command.base)
    written = predict_files(
        _on_device(model, command.device),
        processor,
        command.images,
        _output_folder(command.output),
        boxes=command.boxes,
        points=command.points,
        grid=command.grid,
        batch=command.batch,
    )
    print(f"{_count(len(written), 'image')} segmented; masks, overlays and masks.json are in {command.output}")
    return 0


def _merge(arguments: Sequence[str]) -> int:
    from samparser.methods import load_model, merged
    from samparser.methods.loading import trained_folder

    (command,) = _parse("merge", (MergeCommand,), arguments, ("adapter", "out"))
    out = _output_folder(command.out)
    if trained_folder(command.adapter) is None:
        load_model(command.adapter)  # says what it is where it is no model either
        raise ValueError(f"{command.adapter} is a whole model already, so there is nothing to merge.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder for the merged model.")
    model, processor = load_model(command.adapter, base=command.base)
    plain: Any = merged(model, in_place=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        plain.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: a plain {type(plain).__name__}; load it with {type(plain).__name__}.from_pretrained({str(out)!r})")
    return 0


def _push(arguments: Sequence[str]) -> int:
    from huggingface_hub import HfApi

    (command,) = _parse("push", (PushCommand,), arguments, ("adapter", "repo"))
    folder = Path(command.adapter)
    if not any((folder / name).is_file() for name in ("adapter_config.json", "method.json")):
        raise ValueError(
            f"{folder} holds nothing that was trained (no adapter_config.json, no method.json); give RUN/adapter."
        )
    api = HfApi()
    api.create_repo(command.repo, private=command.private, exist_ok=True)
    print(api.upload_folder(repo_id=command.repo, folder_path=folder, commit_message="Upload adapter"))
    return 0


def _data_check(arguments: Sequence[str]) -> int:
    from samparser.data import DataSettings
    from samparser.data_check import check_dataset

    command, data = _parse("data check", (CheckCommand, DataSettings), arguments, ("data",))
    sheet = None if command.contact_sheet in (None, "none") else Path(command.contact_sheet)
    report = check_dataset(data, command.split, contact_sheet=sheet)
    print(report)
    return 0 if report.usable else 1


def _compare(arguments: Sequence[str]) -> int:
    from samparser.compare import compare, load_experiment, markdown, select, with_settings

    (command,) = _parse("compare", (CompareCommand,), arguments, ("experiment",))
    experiment = load_experiment(command.experiment)
    experiment = select(experiment, data=command.data, rows=command.rows, seeds=command.seeds)
    if command.epochs is not None:
        experiment = with_settings(experiment, num_train_epochs=command.epochs)
    report = compare(
        experiment,
        output=command.output,
        data_root=command.data_root,
        limit=command.limit,
        processes=command.processes,
        cost=command.cost,
        say=lambda line: print(line, flush=True),
    )
    print(markdown(report))
    print(f"written: {Path(command.output) / experiment.name}.md and .json")
    return 0


def _methods(arguments: Sequence[str]) -> int:
    from samparser.methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:{width}}  {method.summary}")
    return 0


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "fine-tune a SAM on a data set"),
    "evaluate": (_evaluate, "score a base model, an adapter or a merged model"),
    "predict": (_predict, "segment images with boxes, points or a grid"),
    "merge": (_merge, "write adapter and base as one plain SamModel"),
    "push": (_push, "upload an adapter to the Hugging Face hub"),
    "data check": (_data_check, "read a data set, count, draw a contact sheet"),
    "compare": (_compare, "run an experiment: every method side by side, beside the paper's figures"),
    "methods": (_methods, "list the methods that --method knows"),
}


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in VERBS.items())
    return f"usage: samparser VERB [options]\n\n{verbs}\n\n`samparser VERB --help` lists the options of a verb."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        0 when it went well, 1 when a checked data set cannot be trained on, 2 for a mistake in the input.
    """
    # Deprecations between other packages are nothing that the user of a command can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in given
    given = [word for word in given if word != "--traceback"]
    if given[:1] == ["--version"]:
        print(f"samparser {__version__}")
        return 0
    verb = next((name for name in VERBS if given[: len(name.split())] == name.split()), None)
    if verb is None:
        asked_for_help = not given or given[0] in ("-h", "--help", "help")
        print(_usage() if asked_for_help else f"samparser: unknown verb {given[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return VERBS[verb][0](given[len(verb.split()) :])
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if show_traceback:
            raise
        print(f"samparser {verb}: error: {error}\n(--traceback shows where it arose)", file=sys.stderr)
        return 2
