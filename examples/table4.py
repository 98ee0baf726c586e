"""Table 4 of the paper in full, without data or weights: trained parameters and multiply-accumulates of each method.

    python examples/table4.py
    python examples/table4.py --methods decoder samparser lora --output results/table4.json

Prints a Markdown table for SAM ViT-B at 1024 pixels with the paper's figures beside ours; it takes about a minute on
one core and no memory to speak of, because nothing but shapes is computed.
"""

import json
from dataclasses import asdict, dataclass, field

import torch
import transformers
from transformers import HfArgumentParser

import samparser
from samparser._files import write_text
from samparser.methods import METHODS
from samparser.methods.cost import Cost, method_cost

# What Table 4 prints: parameters beyond the decoder in units of 1024, and "FLOPs (G)" beyond the decoder's.
PAPER = {"decoder": (0.0, 0.0), "lora": (144.0, 0.8), "adapter": (3514.5, 14.7), "samparser": (0.5, 0.6)}

NOTES = """\
Conventions and differences to the paper:

- 1 K is 1024 parameters, as in the paper: the mask decoder's 4,058,340 parameters are its 3963.2 K. Its sum for LoRA,
  4080.2, is not 3963.2 + 144; ours is.
- 1 GMAC is 10^9 multiplications with their additions; FLOPs are twice that. What the paper calls FLOPs are MACs. Matrix
  products, convolutions and attention are counted, for one image and one box. The paper's 374.9 for the whole model
  is near the 370.1 of linear layers and convolutions alone, so the extra over decoder-only is what can be compared.
- Methods of coefficients are counted in their factored form, U (p * (V x)); the layers choose for each shape what runs
  faster, so a training run may do fewer products. After merging, the model is the plain one: extra 0.
- A training step is forward and backward. It shows what the forward hides: a method that trains before the neck has to
  go back through the whole image encoder. Cached: the features that enter the neck are computed once and kept."""


@dataclass(frozen=True)
class Arguments:
    """What to count."""

    methods: list[str] = field(
        default_factory=lambda: list(METHODS), metadata={"help": "Methods to count; all by default."}
    )
    output: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})


def rows(costs: list[Cost], baseline: Cost) -> list[dict[str, object]]:
    """One row per method: the counts, the extra over decoder-only, and the paper's figures where it has them."""
    return [
        {
            **asdict(cost),
            "extra_trained": cost.trained - baseline.trained,
            "extra_forward_macs": cost.forward_macs - baseline.forward_macs,
            "extra_merged_macs": cost.merged_macs - baseline.merged_macs,
            "paper_extra_trained_k": PAPER.get(cost.method, (None, None))[0],
            "paper_extra_forward_g": PAPER.get(cost.method, (None, None))[1],
        }
        for cost in costs
    ]


def markdown(table: list[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| method | trained (K) | extra (K) | paper | forward (GMAC) | extra | paper | extra deployed "
        "| training step (GMAC) | cached |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        cells = [
            str(row["method"]),
            _number(row["trained"], 1024, ".1f"),
            _number(row["extra_trained"], 1024, "+.1f"),
            _number(row["paper_extra_trained_k"], 1, "+.1f"),
            _number(row["forward_macs"], 1e9, ".2f"),
            _number(row["extra_forward_macs"], 1e9, "+.2f"),
            _number(row["paper_extra_forward_g"], 1, "+.1f"),
            _number(row["extra_merged_macs"], 1e9, "+.2f"),
            _number(row["step_macs"], 1e9, ".1f") if row["trained"] else "–",
            _number(row["cached_step_macs"], 1e9, ".1f") if row["trained"] else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: object, unit: float, form: str) -> str:
    return "–" if value is None else format(float(value) / unit, form)  # type: ignore[arg-type]


def main(arguments: Arguments) -> None:
    """Counts, prints and, where asked to, writes the table."""
    wanted = list(dict.fromkeys(["decoder", *arguments.methods]))
    costs = {name: method_cost(name) for name in wanted}
    table = rows([costs[name] for name in arguments.methods], costs["decoder"])
    print(markdown(table), NOTES, sep="\n\n")
    if arguments.output:
        versions = {package.__name__: package.__version__ for package in (samparser, torch, transformers)}
        result = {"model": "SAM ViT-B, 1024 x 1024 pixels", "notes": NOTES, "versions": versions, "rows": table}
        write_text(arguments.output, json.dumps(result, indent=2) + "\n")
        print(f"\nwritten: {arguments.output}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
