"""What a finished run shows: figures, and the scores in the adapter's model card."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from samparser._files import write_text
from samparser.drawing.panels import Panel, best_median_worst, draw_panels
from samparser.drawing.plots import score_curves, spectra
from samparser.prediction.predictor import predict
from samparser.scoring.table import ScoreTable
from samparser.tuner import coefficient_parameters, coefficients

from .before import verdict
from .eval_settings import EvalSettings
from .evaluation import prompts_for
from .run_folder import RunFolder

if TYPE_CHECKING:
    from samparser.data import Sample

_BEGIN = "<!-- scores: from here to the end mark, every training run writes this anew -->"
_END = "<!-- scores: end -->"


def draw_figures(
    folder: RunFolder,
    model: nn.Module,
    processor: Any,
    dataset: "Sequence[Sample] | None" = None,
    scores: ScoreTable | None = None,
    eval_settings: EvalSettings | None = None,
) -> list[Path]:
    """Draws the curves of the run, the coefficients before and after, and its best, median and worst image.

    Args:
        folder: The run; the PNGs go to its ``figures``.
        model: The tuned model. Of a PEFT model the base's masks are drawn beside the tuned ones.
        processor: The model's SamProcessor.
        dataset: The samples that ``scores`` are of; with both, panels are drawn.
        scores: The final scores.
        eval_settings: How they were prompted.

    Returns:
        The files that were written.
    """
    folder.figures.mkdir(exist_ok=True)
    written = []
    if any("loss" in row for row in folder.rows()):
        written.append(score_curves(folder.log, folder.figures / "curves.png"))
    if any(True for _ in coefficient_parameters(model)):
        pairs = coefficients(model)
        before, after = ({name: pair[side].cpu() for name, pair in pairs.items()} for side in (0, 1))
        # Beyond a handful of layers the panels are too narrow to read.
        if len(pairs) <= 6:
            written.append(spectra(before, after, folder.figures / "spectra.png"))
    if dataset is not None and scores is not None and scores.image_scores():
        rows = _panels(model, processor, dataset, scores, eval_settings or EvalSettings())
        written.append(draw_panels(rows, folder.figures / "best-median-worst.png"))
    return written


def _panels(
    model: nn.Module, processor: Any, dataset: "Sequence[Sample]", scores: ScoreTable, eval_settings: EvalSettings
) -> list[Panel]:
    wanted = best_median_worst(scores)
    names = list(getattr(dataset, "names", None) or [dataset[i].name for i in range(len(dataset))])
    disable = getattr(model, "disable_adapter", None)
    variants: dict[str, Any] = {"base": disable, "tuned": nullcontext} if disable else {"tuned": nullcontext}
    rows = []
    for title, name in wanted.items():
        index = names.index(name)
        sample = dataset[index]
        prompts = prompts_for(sample, index, eval_settings)
        masks = {}
        for variant, context in variants.items():
            applied: AbstractContextManager[Any] = context()
            with applied:
                masks[variant] = predict(model, processor, sample.image, **prompts)
        rows.append(Panel(sample.image, sample.masks, masks, f"{title}: {name}"))
    return rows


def add_scores_to_card(
    card: Path,
    scores: ScoreTable,
    dataset: Any,
    *,
    train_set: Any = None,
    before: ScoreTable | None = None,
    chosen_by: str | None = None,
) -> None:
    """Writes data, scores and their definitions into a model card, between marks of its own; other text stays.

    Args:
        card: The README.md of an adapter's folder.
        scores: The final scores.
        dataset: What they are of.
        train_set: What was trained on.
        before: Scores of the same images before the first step.
        chosen_by: The score on these images that chose the checkpoint; None where nothing was chosen by them.
    """
    parts = ["### Data"]
    if train_set is not None:
        parts.append(f"Trained on {_source(train_set)}. Scored on {_source(dataset)}.")
    else:
        parts.append(f"Scored on {_source(dataset)}.")
    parts.append("### Scores")
    if chosen_by is not None:
        parts.append(
            f"The checkpoint with the best {chosen_by} on these same images was kept, which flatters the scores a "
            "little: for a figure to report, score images that chose nothing (`samparser evaluate`)."
        )
    if before is not None:
        parts.append(f"```text\n{verdict(before, scores)}\n```")
    parts.append(f"```text\n{scores}\n```")
    section = "\n\n".join([_BEGIN, *parts, _END])
    text = card.read_text(encoding="utf-8")
    start, end = text.find(_BEGIN), text.find(_END)
    if 0 <= start < end:
        text = text[:start] + section + text[end + len(_END) :]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(card, text)


def _source(dataset: Any) -> str:
    """A data set in words: how many images, of which folder, layout, split and classes."""
    root = getattr(dataset, "root", None)
    words = [f"{len(dataset):,} image{'s' * (len(dataset) != 1)}"]
    if root is not None:
        words.append(f"of `{Path(root).resolve().name}`")
    described = [
        f"{word} {value}" for word in ("layout", "split") if (value := getattr(dataset, word, None)) is not None
    ]
    names = list(dict.fromkeys(getattr(dataset, "classes", {}).values()))
    if names:
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        described.append(f"class{'es' * (len(names) > 1)} {', '.join(names[:12])}{more}")
    return " ".join(words) + (f" ({', '.join(described)})" if described else "")
