"""Report of an inspection: everything that was found, as text, as JSON and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samparser.drawing.heatmaps import cosine_heatmaps
from samparser.drawing.pair_maps import pair_maps
from samparser.drawing.plots import spectra
from samparser.drawing.scale_curves import scale_curves

from .arithmetic import Combination, combinations_table
from .distil import Distilled
from .interpolation import Curve
from .moves import LayerMove, moves_table, pairs_of, spectra_of
from .output_folder import InspectionFolder
from .similarity import Similarity

_MOST_HEATMAPS = 8


@dataclass
class Findings:
    """What an inspection found; parts that were not asked for are empty.

    Args:
        moves: How far each layer moved, by the adapter's name.
        similarity: Cosines between the adapters.
        curves: Scores against the scale of each adapter.
        combinations: Scores of sums and differences.
        distilled: What a distilled adapter explains of a full fine-tune.
    """

    moves: Mapping[str, list[LayerMove]]
    similarity: Similarity | None = None
    curves: list[Curve] = field(default_factory=list)
    combinations: list[Combination] = field(default_factory=list)
    distilled: Distilled | None = None

    def plain(self) -> dict[str, Any]:
        """Give everything as plain values for JSON."""
        found: dict[str, Any] = {
            "adapters": {name: {"layers": [asdict(move) for move in moves]} for name, moves in self.moves.items()}
        }
        if self.similarity is not None:
            found["cosine"] = asdict(self.similarity)
        if self.curves:
            found["interpolation"] = {
                curve.adapter: [
                    {"scale": scale, **score.plain(), "gain": gain.plain()}
                    for scale, score, gain in zip(curve.scales, curve.scores, curve.gains, strict=True)
                ]
                for curve in self.curves
            }
        if self.combinations:
            found["arithmetic"] = [
                {"weights": one.weights, **one.score.plain(), "gain": one.gain.plain()} for one in self.combinations
            ]
        if self.distilled is not None:
            found["distilled"] = plain_distilled(self.distilled)
        return found

    def __str__(self) -> str:
        """Write the tables, one after another."""
        parts = [f"{name}\n{moves_table(moves)}" for name, moves in self.moves.items()]
        parts += [str(self.similarity)] if self.similarity is not None and len(self.moves) > 1 else []
        parts += [str(curve) for curve in self.curves]
        parts += [combinations_table(self.combinations)] if self.combinations else []
        return "\n\n".join(parts)


def plain_distilled(distilled: Distilled) -> dict[str, Any]:
    """Give the shares of a distilled adapter as plain values."""
    return {
        "share": distilled.share,
        "share_of_everything": distilled.share_of_everything,
        "layers": [{**asdict(layer), "share": layer.share} for layer in distilled.layers],
        "rest": [asdict(part) for part in distilled.parts],
    }


def picture_names(adapters: list[str], *, scored: bool) -> list[str]:
    """List the files that `draw` may write."""
    names = [f"{kind}-{name}.png" for name in adapters for kind in ("spectra", "pairs")]
    names += ["similarity.png"] if len(adapters) > 1 else []
    return [*names, "interpolation.png"] if scored else names


def draw(findings: Findings, model: Any, folder: InspectionFolder, *, ground: str = "") -> list[Path]:
    """Draw the spectra and pairs of each adapter, the cosines, and the scores against the scale.

    Args:
        findings: What was found.
        model: The model with the adapters.
        folder: Where the pictures go.
        ground: What the scores are of, for a title.

    Returns:
        The files that were written.
    """
    written = []
    for name in findings.moves:
        before, after = spectra_of(model, name)
        written.append(folder.add(spectra(before, after, folder.path / f"spectra-{name}.png")))
        if pairs := pairs_of(model, name):
            written.append(folder.add(pair_maps(pairs, folder.path / f"pairs-{name}.png")))
    similarity = findings.similarity
    if similarity is not None and len(findings.moves) > 1:
        squares = {"all layers": similarity.total}
        # One layer is all layers; beyond a handful the squares are too small to read, and the JSON has them.
        if 1 < len(similarity.layers) <= _MOST_HEATMAPS:
            squares |= {_short(layer): square for layer, square in similarity.layers.items()}
        path = folder.path / "similarity.png"
        written.append(folder.add(cosine_heatmaps(squares, similarity.adapters, path)))
    if findings.curves:
        lines: dict[str, dict[str, Any]] = {"mIoU": {}, "F1": {}}
        for curve in findings.curves:
            # The error of the gain: images differ from one another by far more than scales do.
            both = list(zip(curve.scores, curve.gains, strict=True))
            lines["mIoU"][curve.adapter] = curve.scales, [(score.miou, gain.miou_error) for score, gain in both]
            lines["F1"][curve.adapter] = curve.scales, [(score.f1, gain.f1_error) for score, gain in both]
        note = f"band: standard error of the difference to scale {findings.curves[0].scales[0]:g}, image by image"
        path = folder.path / "interpolation.png"
        written.append(folder.add(scale_curves(lines, path, ground=ground, note=note)))
    return written


def _short(layer: str, most: int = 28) -> str:
    return layer if len(layer) <= most else f"...{layer[-most + 3 :]}"
