"""`samparser inspect`: what adapters changed, how alike they are, and how they score in part and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from samparser._options import option
from samparser._words import count
from samparser.data import DataSettings
from samparser.inspection import (
    SCALES,
    Combination,
    Curve,
    Distilled,
    Evaluation,
    Findings,
    combine,
    combined,
    distil,
    interpolate,
    layer_moves,
    open_adapters,
    save_combination,
    similarity,
    sums_and_differences,
)
from samparser.inspection.adapters import adapter_folder, adapter_names
from samparser.inspection.interpolation import check_scales
from samparser.inspection.output_folder import InspectionFolder
from samparser.inspection.report import draw, picture_names
from samparser.inspection.scores import from_features
from samparser.methods import load_model, save_trained
from samparser.methods.folder import PEFT_CONFIG, PEFT_TENSORS
from samparser.methods.loading import load_base_of
from samparser.sam import load_sam
from samparser.sam.frame_choice import chosen_frame
from samparser.training import EvalSettings
from samparser.training.environment import versions

from .parser import SettingsParser
from .shared import DEVICE, LoadSettings, on_device, open_split, refuse_less_than_one, say

_DISTILLED, _COMBINATION = "distilled", "combination"


@dataclass(frozen=True)
class InspectCommand:
    """Show what adapters of coefficients changed, how alike they are, and how they score in part and together."""

    adapters: list[str] | None = option(
        "The adapters, all of one base model: their folders (for instance RUN/adapter), or names on the Hugging Face "
        "hub. With --distil there may be none.",
        None,
    )
    output: str | None = option(
        "Folder for pictures, inspection.json and adapters that are made; files in it that this command did not write "
        "are never replaced.",
        None,
    )
    split: str = option("Split to score on, where --data is given.", "val")
    scales: list[float] | None = option(
        "Scales to score each adapter at, 0 the base model and 1 as trained. Default: 0 0.25 0.5 0.75 1 1.25 1.5. Each "
        "is a pass over the images.",
        None,
    )
    weights: list[float] | None = option(
        "One weight for each adapter, for instance 1 -1: score this sum of them in the place of the sums and "
        "differences of all pairs, and write it as an adapter to OUTPUT/combination.",
        None,
    )
    distil: str | None = option(
        "A fully tuned model, or a merged one (folder or hub name): write the coefficients and pairs that come nearest "
        "to its change of the base to OUTPUT/distilled, and inspect them beside the adapters.",
        None,
    )
    layers: list[str] | None = option(
        "Layers to distil: neck, attention (those of the image encoder), or names of layers. Default: neck.", None
    )
    rank: int | None = option(
        "Pairs of bases for each layer in distilling, beside its coefficients; 0: none. Default: 64.", None
    )
    keep: list[str] | None = option(
        "Modules of the tuned model that the distilled adapter keeps in full, such as mask_decoder (16 MB of SAM's).",
        None,
    )
    cache: str | None = option(
        "Folder for features, so that each image is encoded once for all scores; for adapters of the neck and what "
        "follows it.",
        None,
    )
    limit_images: int | None = option("Score only so many images.", None)
    device: Literal["auto", "cpu"] = option(DEVICE, "auto")

    def __post_init__(self) -> None:
        refuse_less_than_one(self, "limit_images")
        if not self.adapters and self.distil is None:
            raise ValueError("There is nothing to inspect: name the folder of an adapter, or a model to --distil.")
        if self.scales is not None:
            check_scales(self.scales)
        if self.distil is None:
            for name in ("layers", "rank", "keep"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} {getattr(self, name)} is about distilling: give --distil, too.")
        elif self.output is None:
            raise ValueError("--distil makes an adapter; name a folder for it with --output.")
        adapters = len(self.adapters or ()) + (self.distil is not None)
        if self.weights is not None and len(self.weights) != adapters:
            raise ValueError(
                f"--weights has {len(self.weights)} numbers for {count(adapters, 'adapter')}; give one for each."
            )


@dataclass(frozen=True)
class InspectionData(DataSettings):
    """The images to score on, if any."""

    COMMON = ("layout", "classes", "min_area", "annotations", "val_ratio", "limit")

    data: str = option("Folder of the data set, or a COCO JSON file. Not given: nothing is scored.", "")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "inspect",
        {
            "what to inspect": InspectCommand,
            "how to open it": LoadSettings,
            "data": InspectionData,
            "scoring": EvalSettings,
        },
        ("adapters",),
        example="samparser inspect runs/nuclei/adapter runs/ships/adapter --data path/to/data --output inspection",
    )


def run(arguments: Sequence[str]) -> int:
    """Inspect, print the tables, and write them with their pictures where a folder is given."""
    command, loading, data, scoring = parser().parse(arguments)
    _refuse_what_needs_images(command, data, scoring)
    if not command.adapters and loading.base is None:
        raise ValueError("--distil compares with a base model: give it as --base, or name an adapter of it.")
    folder = None if command.output is None else InspectionFolder(command.output)
    paths = list(command.adapters or ())
    for path in paths:
        adapter_folder(path)  # refuses what is none before images are read and models are distilled
    if folder is not None:
        made = [name for name, wanted in ((_DISTILLED, command.distil), (_COMBINATION, command.weights)) if wanted]
        names = adapter_names([*paths, *([_DISTILLED] if command.distil else [])])
        folder.check(picture_names(names, scored=bool(data.data)), made)
    dataset = open_split(data, command.split) if data.data else None
    distilled = None
    if folder is not None and command.distil is not None:
        distilled = _distil(command, loading, folder)
        paths.append(str(folder.path / _DISTILLED))
    model, processor = open_adapters(
        paths, loading.base, frame=loading.frame, check_base=loading.check_base, check_weights=loading.check_weights
    )
    model, names = on_device(model, command.device), list(model.peft_config)
    findings = Findings({name: layer_moves(model, name) for name in names}, similarity(model, names))
    findings.distilled = distilled
    if dataset is not None:
        evaluation = Evaluation(processor, dataset, scoring, command.limit_images)
        with from_features(evaluation, model, command.cache) as fed:
            findings.curves = _curves(model, names, fed, command.scales or SCALES)
            findings.combinations = _combinations(model, names, fed, command.weights)
    say(findings)
    if folder is None:
        return 0
    written: list[Path] = []
    with folder.writing():
        if command.weights is not None:
            save_combination(model, dict(zip(names, command.weights, strict=True)), folder.path / _COMBINATION)
            written.append(folder.add(folder.path / _COMBINATION))
        written += draw(findings, model, folder, ground=f"{Path(data.data).name} {command.split}" if data.data else "")
        given = {"command": command, "loading": loading, "data": data, "evaluation": scoring}
        settings = {name: asdict(part) for name, part in given.items()}
        results = folder.finish({**findings.plain(), "settings": settings, "versions": versions()})
    say(f"\nwritten: {', '.join(map(str, [*written, results]))}")
    if (frame := chosen_frame(model)) and (command.distil or command.weights):
        say(f"The base takes images as --frame {frame} says: give it again to open the adapters that were made here.")
    return 0


def _refuse_what_needs_images(command: InspectCommand, data: InspectionData, scoring: EvalSettings) -> None:
    if data.data:
        return
    given = [f"--{name}" for name in ("scales", "cache", "limit_images") if getattr(command, name) is not None]
    given += ["--split"] if command.split != "val" else []
    for settings in (data, scoring):
        given += [f"--{part.name}" for part in fields(settings) if getattr(settings, part.name) != part.default]
    if given:
        raise ValueError(f"{given[0]} is about scores, and there are no images to score: give --data.")
    if command.weights is not None and command.output is None:
        raise ValueError("--weights makes a sum to score or to write: give --data, --output, or both.")


def _distil(command: InspectCommand, loading: LoadSettings, folder: InspectionFolder) -> Distilled:
    """Distil, tell the shares, and write the adapter."""
    assert command.distil is not None
    tuned, _ = load_model(command.distil)
    if command.adapters:
        base, _ = load_base_of(adapter_folder(command.adapters[0]), loading.base, frame=loading.frame)
    else:
        assert loading.base is not None  # `run` saw to it
        base, _ = load_sam(loading.base, frame=loading.frame)
    rank = 64 if command.rank is None else command.rank
    distilled = distil(base, tuned, layers=command.layers or ["neck"], rank=rank, keep=command.keep or [])
    with folder.writing():
        save_trained(distilled.model, folder.path / _DISTILLED)
        folder.add(folder.path / _DISTILLED)
    sizes = {name: (folder.path / _DISTILLED / name).stat().st_size for name in (PEFT_TENSORS, PEFT_CONFIG)}
    files = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
    say(f"{distilled}\nwritten: {folder.path / _DISTILLED} ({files})\n")
    return distilled


def _curves(model: Any, names: Sequence[str], evaluation: Evaluation, scales: Sequence[float]) -> list[Curve]:
    say(f"scoring {count(len(names), 'adapter')} at {count(len(scales), 'scale')} each")
    return [interpolate(model, name, evaluation, scales) for name in names]


def _combinations(
    model: Any, names: Sequence[str], evaluation: Evaluation, weights: Sequence[float] | None
) -> list[Combination]:
    """Score the sum that is asked for, or all sums and differences of two; tell where these do not exist."""
    if weights is not None:
        return combine(model, [dict(zip(names, weights, strict=True))], evaluation)
    if len(names) < 2:
        return []
    wanted = sums_and_differences(names)
    try:
        for one in wanted:
            with combined(model, one):
                pass
    except ValueError as error:
        say(f"sums and differences are left out: {error}")
        return []
    say(f"scoring {count(len(wanted), 'sum')} and the base")
    return combine(model, wanted, evaluation)
