"""The settings of a pre-training: everything that, with the photos, decides the trained weights."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.model import Architecture


@dataclass(frozen=True)
class Phase:
    """A part of the training at one size of input.

    Attributes:
        until: The step at which the phase ends, counted from the start of the training.
        size: Side of the input in pixels; less than the model's ``image_size`` trains on tiles of its canvas.
        batch: Images per step, over all processes.
        objects: Objects asked for in each image.
        zoom: Lowest and highest scale at which scenes (288 px wide) are shown.
        photo_zoom: The same for photos (longest side at most 480 px).
    """

    until: int
    size: int
    batch: int
    objects: int
    zoom: tuple[float, float]
    photo_zoom: tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """A whole pre-training. The defaults are those of the shipped checkpoint.

    Attributes:
        architecture: Size of the model.
        phases: Input sizes and batches, in order.
        seed: Decides scenes, windows, prompts and first weights.
        scenes: Number of synthetic scenes to train on.
        held_out_scenes: Number of further scenes that only score.
        photo_share: Share of the samples that show a photo, where there are photos.
        held_out_photos: Number of photos that only score.
        box_only: Steps before points and several masks per prompt join in.
        learning_rate: AdamW's learning rate, as points (step, rate) with straight lines between them.
        muon: Muon's rate as a multiple of that; Muon trains the matrices and kernels inside the model, AdamW its
            vectors, embeddings and the patch projection.
        weight_decay: On matrices and kernels; vectors have none.
        average: Decay of the running average of the weights, which is what is scored and shipped, as pairs
            (first step, decay).
        offset: What the loss takes off the logits, as pairs (first step, offset). A mask that is to overlap most takes
            in pixels that are less likely than not to belong to it, the more so the less certain the model is: after
            training with an offset, that mask lies at threshold 0.
    """

    architecture: Architecture = field(default_factory=Architecture)
    phases: tuple[Phase, ...] = (
        Phase(until=1200, size=128, batch=8, objects=8, zoom=(0.45, 1.2), photo_zoom=(0.22, 0.8)),
        Phase(until=2500, size=128, batch=12, objects=8, zoom=(0.45, 1.2), photo_zoom=(0.22, 0.8)),
        Phase(until=3400, size=256, batch=4, objects=8, zoom=(0.7, 1.3), photo_zoom=(0.4, 0.9)),
    )
    seed: int = 0
    scenes: int = 3600
    held_out_scenes: int = 32
    photo_share: float = 0.3
    held_out_photos: int = 10
    box_only: int = 900
    learning_rate: tuple[tuple[int, float], ...] = (
        (0, 1e-5),
        (100, 1e-3),
        (2300, 1e-3),
        (2600, 1e-3 * 1210 / 1510),
        (3410, 0.0),
    )
    muon: float = 2.0
    weight_decay: float = 0.03
    average: tuple[tuple[int, float], ...] = ((0, 0.998), (2500, 0.99), (3000, 0.995))
    offset: tuple[tuple[int, float], ...] = ((0, 0.0), (3000, 0.6))

    def __post_init__(self) -> None:
        ends = [0, *(phase.until for phase in self.phases)]
        if not self.phases or any(later <= earlier for earlier, later in pairwise(ends)):
            raise ValueError(f"The phases end at steps {ends[1:]}; each must end later than the one before it.")
        patch, side = self.architecture.patch_size, self.architecture.image_size
        for phase in self.phases:
            if phase.size % patch or phase.size > side:
                raise ValueError(
                    f"A phase trains at {phase.size} px; a model of {side} px with patches of {patch} px takes a "
                    f"multiple of {patch} that is at most {side}."
                )

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.phases[-1].until

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next(phase for phase in self.phases if step < phase.until)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return float(np.interp(step, *zip(*self.learning_rate, strict=True)))

    def average_decay(self, step: int) -> float:
        """How much of the running average stays in a step; less in the first ones, which it should forget."""
        return min(_at(self.average, step), (step + 1) / (step + 10))

    def logit_offset(self, step: int) -> float:
        """What the loss of a step takes off the logits."""
        return _at(self.offset, step)

    def differences(self, other: "Recipe", steps: int) -> list[str]:
        """Names of the settings by which the first ``steps`` steps of the two recipes differ.

        What only later steps will notice (the end, phases and rates yet to come) is no difference: who resumes with it
        gets what the new recipe would have given from the start.
        """
        by_step = ("phases", "learning_rate", "average", "offset", "box_only")
        names = [
            entry.name
            for entry in fields(self)
            if entry.name not in by_step and getattr(self, entry.name) != getattr(other, entry.name)
        ]
        if steps > min(self.steps, other.steps):
            return [*names, "phases"]
        for step in range(steps):
            if not isclose(self.rate(step), other.rate(step), rel_tol=1e-9):
                names.append("learning_rate")
            if self.average_decay(step) != other.average_decay(step):
                names.append("average")
            if self.logit_offset(step) != other.logit_offset(step):
                names.append("offset")
            if (step < self.box_only) != (step < other.box_only):
                names.append("box_only")
            if replace(self.phase(step), until=0) != replace(other.phase(step), until=0):
                names.append("phases")
        return list(dict.fromkeys(names))

    def to_json(self) -> str:
        """The recipe as :meth:`load` reads it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a recipe; what the file leaves out keeps its default."""
        values = _known(cls, json.loads(path.read_text()), path)
        if "architecture" in values:
            values["architecture"] = Architecture(**_known(Architecture, values["architecture"], path))
        if "phases" in values:
            values["phases"] = tuple(Phase(**_known(Phase, phase, path)) for phase in values["phases"])
        return cls(**values)


def _at(pairs: tuple[tuple[int, float], ...], step: int) -> float:
    """The value of the last pair (first step, value) that has begun."""
    return [value for first, value in pairs if first <= step][-1]


def _known(kind: type, values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values with lists as tuples, if ``kind`` has a field for each of them."""
    names = [entry.name for entry in fields(kind)]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"{path} sets {', '.join(unknown)}; a {kind.__name__} can set {', '.join(names)}.")
    return {key: value if key == "phases" else _frozen(value) for key, value in values.items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value
