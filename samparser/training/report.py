"""What a finished run leaves: the adapter, its scores in tables and in its model card, and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import nn

from samparser._files import write_text
from samparser.drawing.panels import Panel, best_median_worst, draw_panels
from samparser.drawing.plots import score_curves, spectra
from samparser.methods.card import add_scores
from samparser.prediction.predictor import predict
from samparser.scoring.table import ScoreTable
from samparser.tuner import coefficient_parameters, coefficients

from .also import Forgetting
from .eval_settings import EvalSettings
from .evaluation import prompts_for
from .run_folder import RunFolder
from .score_before import scores_before, verdict
from .trainer import SamTrainer

if TYPE_CHECKING:
    from samparser.data import Sample


def write_results(
    trainer: SamTrainer,
    folder: RunFolder,
    scores: ScoreTable | None,
    save: Callable[[nn.Module, Path], None],
    metrics: Mapping[str, float],
    *,
    figures: bool,
    forgetting: Forgetting | None = None,
) -> None:
    """Write adapter, scores, card and figures of a run, and at last `finished.json`.

    Args:
        trainer: The trainer at its end, whose model has the weights to keep.
        folder: The run.
        scores: The final scores; None without validation images.
        save: Writes the trained model to a folder.
        metrics: Run times, for `finished.json`.
        figures: Whether to draw.
        forgetting: What was lost on another data set, for the card.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    save(model, folder.adapter)
    card = folder.adapter / "README.md"
    if scores is not None:
        scores.to_csv(folder.path / "scores.csv")
        scores.to_json(folder.path / "scores.json")
        if card.is_file():
            add_scores_to_card(
                card,
                scores,
                trainer.eval_dataset,
                train_set=trainer.train_dataset.dataset,
                before=scores_before(folder),
                forgetting=forgetting,
                chosen_by=trainer.args.metric_for_best_model if trainer.args.load_best_model_at_end else None,
            )
    elif forgetting is not None and card.is_file():
        add_scores(card, f"### Forgetting\n\n{forgetting}", {}, dataset=forgetting.title)
    if figures:
        draw_figures(folder, model, trainer.processor, trainer.eval_dataset, scores, trainer.eval_settings)
    write_text(folder.finished, json.dumps({"steps": trainer.state.global_step, **metrics}, indent=2))


def draw_figures(
    folder: RunFolder,
    model: nn.Module,
    processor: Any,
    dataset: Sequence[Sample] | None = None,
    scores: ScoreTable | None = None,
    eval_settings: EvalSettings | None = None,
) -> list[Path]:
    """Draw the curves of the run, the coefficients before and after, and its best, median and worst image.

    Args:
        folder: The run; the PNGs go to its `figures`.
        model: The tuned model. Of a PEFT model the base's masks are drawn beside the tuned ones.
        processor: The model's processor.
        dataset: The samples that `scores` are of; with both, panels are drawn.
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
        adapter = model.active_adapters[0] if isinstance(model, PeftModel) else "default"
        pairs = coefficients(model, adapter)
        before, after = ({name: pair[side].cpu() for name, pair in pairs.items()} for side in (0, 1))
        # Beyond a handful of layers the panels are too narrow to read.
        if len(pairs) <= 6:
            written.append(spectra(before, after, folder.figures / "spectra.png"))
    if dataset is not None and scores is not None and scores.image_scores():
        rows = _panels(model, processor, dataset, scores, eval_settings or EvalSettings())
        written.append(draw_panels(rows, folder.figures / "best-median-worst.png"))
    return written


def _panels(
    model: nn.Module, processor: Any, dataset: Sequence[Sample], scores: ScoreTable, eval_settings: EvalSettings
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
    forgetting: Forgetting | None = None,
    chosen_by: str | None = None,
) -> None:
    """Write data, scores and their definitions into a model card, between marks of its own; other text stays.

    Args:
        card: The README.md of an adapter's folder.
        scores: The final scores.
        dataset: What they are of.
        train_set: What was trained on.
        before: Scores of the same images before the first step.
        forgetting: What was lost on another data set.
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
    if forgetting is not None:
        parts += ["### Forgetting", str(forgetting)]
    root = getattr(dataset, "root", None)
    add_scores(
        card,
        "\n\n".join(parts),
        {"mIoU": scores.miou, "F1": scores.f1},
        dataset=Path(root).resolve().name if root is not None else type(dataset).__name__,
        split=getattr(dataset, "split", None),
    )


def _source(dataset: Any) -> str:
    """Return a data set in words: how many images, of which folder, layout, split and classes."""
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
