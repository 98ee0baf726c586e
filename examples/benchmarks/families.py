"""What a forward from cached features costs in every family, counted without weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from samparser.sam import FAMILIES

from .measure import table

GMAC, MB = 1e9, 1e6
_FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Counts:
    """Multiply-accumulates of a forward for one image, and what is kept of it.

    Attributes:
        before_neck: The frozen encoder, which a cache leaves out.
        neck: The neck with the rest that stands between features and decoder: `conv_s0`, `conv_s1`.
        decoder: Prompt encoder and mask decoder for one box.
        further_box: Each box more.
        feature_bytes: Features in float16.
    """

    before_neck: int
    neck: int
    decoder: int
    further_box: int
    feature_bytes: int

    @property
    def forwards(self) -> float:
        """How many forwards from features for one box take the products of one from pixels."""
        return self.before_neck / (self.neck + self.decoder) + 1


def count_family(config: PreTrainedConfig) -> Counts:
    """Count a model by its config; nothing is computed but shapes.

    Raises:
        ImportError: The model needs a package that is not installed.
    """
    family = FAMILIES[config.model_type]
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(config).requires_grad_(False).eval()
    size = family.frame(model).size
    before_neck, features = _counted(lambda: family.encode(model, torch.empty(1, 3, size, size, device="meta")))
    neck, embedded = _counted(lambda: family.embed(model, features))
    one, two = (_counted(lambda n=n: family.decode(model, embedded, _boxes(n)))[0] for n in (1, 2))
    feature_bytes = sum(torch.float16.itemsize * tensor.numel() for tensor in features)
    return Counts(before_neck, neck, one, two - one, feature_bytes)


def measure_families(configs: Mapping[str, Callable[[], PreTrainedConfig]]) -> str:
    """A table with a row for each config; one whose model needs a package that is missing is named below it."""
    rows, notes = [], []
    for name, config in configs.items():
        try:
            counts = count_family(config())
        except ImportError as error:
            notes.append(f"- {name} is not counted: {' '.join(str(error).split())}")
            continue
        parts = (counts.before_neck, counts.neck, counts.decoder, counts.further_box)
        cells = [*(f"{part / GMAC:.2f}" for part in parts), f"1/{counts.forwards:.0f}"]
        rows.append([name, *cells, f"{counts.feature_bytes / MB:.1f} MB"])
    header = ["model", "before the neck", "neck", "decoder", "each further box", "from features", "features, fp16"]
    text = (
        "Forward of one image with one box in 10^9 multiply-accumulates (GMAC) of matrix products, convolutions and "
        "attention; from features it is neck and decoder:"
    )
    return "\n\n".join(filter(None, [text, table(header, rows), "\n".join(notes)]))


def _boxes(count: int) -> dict[str, Tensor]:
    return {"input_boxes": torch.empty(1, count, 4, device="meta")}


def _counted(run: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops() // _FLOPS_PER_MAC, result
