"""One image under k adapters: shared up to the first coefficients, against switching merged weights."""

from typing import Any

import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prediction import predict
from samparser.sam import default_processor, neck_targets

from .measure import alternate, cell, table
from .models import Size, make_sam, make_samples


def measure_many_adapters(size: Size, rounds: int, *, quick: bool) -> str:
    """Time over one plain prediction; the two ways take turns."""
    counts = [2, 3] if quick else [2, 8, 32]
    model: Any = make_sam(size)
    processor = default_processor(model)
    (sample,) = make_samples(1, size.pixels)
    targets = neck_targets(model)
    plain = make_sam(size)
    model = get_peft_model(model, SVDCoefficientConfig(target_modules=targets, init_weights=False), "a0")
    for number in range(1, max(counts)):
        model.add_adapter(f"a{number}", SVDCoefficientConfig(target_modules=targets, init_weights=False))
    names = list(model.peft_config)

    def base_once() -> None:
        predict(plain, processor, sample.image, boxes=sample.boxes)

    def shared(k: int) -> None:
        predict(model, processor, sample.image, boxes=sample.boxes, adapters=names[:k])

    def switched(k: int) -> None:
        for name in names[:k]:
            model.set_adapter(name)
            model.merge_adapter()
            predict(model, processor, sample.image, boxes=sample.boxes)
            model.unmerge_adapter()

    rows = []
    for k in counts:
        # Switching grows with k by nature; two rounds of the large ones are enough to see it.
        some = rounds if k < 8 else 1
        with torch.no_grad():
            timings = alternate(
                {"plain": base_once, "shared": lambda k=k: shared(k), "switched": lambda k=k: switched(k)},  # type: ignore[misc]
                some,
                baseline="plain",
                warm=k == counts[0],
            )
        rows.append([str(k), cell(timings["shared"]), cell(timings["switched"])])
    header = ["adapters k", "predict(..., adapters=[...])", "merge, predict, unmerge for each"]
    return f"{size.name}, one image, over one prediction of the plain model:\n\n{table(header, rows)}"
