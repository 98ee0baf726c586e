"""Coefficient tools: what adapters changed, how alike they are, how they score in part and together.

model, processor = open_adapters(["runs/nuclei/adapter", "runs/ships/adapter"])
print(moves_table(layer_moves(model, "nuclei")))
print(similarity(model, ["nuclei", "ships"]))
print(interpolate(model, "nuclei", Evaluation(processor, dataset)))
print(distil(base, fully_tuned, rank=64))
"""

from .adapters import adapter_names, open_adapters
from .arithmetic import Combination, combinations_table, combine, combined, save_combination, sums_and_differences
from .distil import Distilled, LayerShare, distil
from .interpolation import SCALES, Curve, at_scale, interpolate
from .leftover import PartChange
from .moves import Direction, LayerMove, layer_moves, moves_table
from .report import Findings
from .scores import Evaluation, Score, difference, score_of
from .similarity import Similarity, similarity

__all__ = [
    "SCALES",
    "Combination",
    "Curve",
    "Direction",
    "Distilled",
    "Evaluation",
    "Findings",
    "LayerMove",
    "LayerShare",
    "PartChange",
    "Score",
    "Similarity",
    "adapter_names",
    "at_scale",
    "combinations_table",
    "combine",
    "combined",
    "difference",
    "distil",
    "interpolate",
    "layer_moves",
    "moves_table",
    "open_adapters",
    "save_combination",
    "score_of",
    "similarity",
    "sums_and_differences",
]
