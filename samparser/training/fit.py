"""One call trains a SAM from the first step to a complete run folder, or goes on where a killed run stopped."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from samparser._files import write_text
from samparser._memory import TRAINING, advising
from samparser.data.flips import RandomlyFlipped
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam.lean import lean_decoder
from samparser.sam.wrapped import changes_before_neck
from samparser.scoring.table import ScoreTable

from .before import ScoreBefore, scores_before
from .caching import fed_from, images_of, open_cache
from .callbacks import CheckpointMark, EpochToDataset, JsonLinesLog, LogBeforeCheckpoint, ProgressBar
from .eval_settings import EvalSettings
from .leakage import shared_image
from .report import add_scores_to_card, draw_figures
from .run_folder import RunFolder
from .settings import TrainSettings
from .trainer import SamTrainer, trained_parameters

if TYPE_CHECKING:
    from samparser.data import Sample


@dataclass(frozen=True)
class TrainResult:
    """What a run gave.

    Attributes:
        folder: Where everything is.
        scores: The final scores; None without validation images.
        steps: The optimizer steps it took.
        before: Scores of the same images before the first step; None without validation images or where
            ``score_before`` was off.
    """

    folder: RunFolder
    scores: ScoreTable | None
    steps: int
    before: ScoreTable | None = None


def _check(model: nn.Module, train_set: "Sequence[Sample]", settings: TrainSettings, eval_set: Any) -> None:
    if not any(True for _ in trained_parameters(model)):
        raise ValueError(
            "Nothing in this model requires a gradient, so there is nothing to train. Wrap it first, for instance with "
            "get_peft_model(model, SVDCoefficientConfig(target_modules=['neck'])) or build('samparser', model)."
        )
    if len(train_set) == 0:
        raise ValueError("The training set is empty: no image with an instance. `samparser data check` says why.")
    if eval_set is not None and len(eval_set) == 0:
        raise ValueError("The validation set is empty: no image with an instance. `samparser data check` says why.")
    twins = shared_image(train_set, eval_set) if eval_set is not None else None
    if twins is not None:
        same = f"{twins[0]} is" if twins[0] == twins[1] else f"{twins[0]} and {twins[1]} are the same file, which is"
        problem = (
            f"{same} in both the training and the validation set, so the scores would say nothing. Choose disjoint "
            "splits; `samparser data check` counts such images. Where a benchmark is published like this, "
            "--allow_shared goes on with a warning."
        )
        if not settings.allow_shared:
            raise ValueError(problem)
        warnings.warn(problem, stacklevel=3)
    if settings.gradient_checkpointing and not changes_before_neck(model).trained:
        raise ValueError(
            "gradient_checkpointing saves nothing here: no layer before the neck is trained, so none of them keeps "
            "activations; it would only make every step slower. Leave it out."
        )


def _training_arguments(folder: RunFolder, settings: TrainSettings, *, has_eval: bool) -> TrainingArguments:
    every = settings.eval_every if has_eval else ("epoch" if settings.eval_every == "never" else settings.eval_every)
    steps = int(every) if every.isdigit() else None
    saving = {"save_strategy": "steps", "save_steps": steps} if steps else {"save_strategy": "epoch"}
    scoring: dict[str, Any] = {"eval_strategy": "no"}
    if has_eval and settings.eval_every != "never":
        scoring = {"eval_strategy": "steps", "eval_steps": steps} if steps else {"eval_strategy": "epoch"}
        scoring |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{settings.metric}",
            "greater_is_better": True,
        }
    elif settings.eval_every == "never":
        saving = {"save_strategy": "epoch"}
    report_to = [name for name in settings.report_to.split(",") if name]
    if "tensorboard" in report_to:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        num_train_epochs=settings.epochs or 1.0,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate or 0.0,
        weight_decay=settings.weight_decay or 0.0,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup_steps,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.workers,
        logging_steps=settings.log_every,
        save_total_limit=settings.keep_checkpoints,
        report_to=report_to or "none",
        use_cpu=settings.device == "cpu" or not torch.accelerator.is_available(),
        remove_unused_columns=False,
        # The decoder's IoU head gets no gradient from a loss on masks.
        ddp_find_unused_parameters=True,
        **saving,
        **scoring,
        **(_checkpointing() if settings.gradient_checkpointing else {}),
    )


def _check_loggers(arguments: TrainingArguments) -> None:
    """Finds out before anything is written whether the loggers of ``report_to`` are known and installed."""
    try:
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"report_to is {', '.join(arguments.report_to)}: {error} Or leave it out, or give none."
        ) from error


def _checkpointing() -> dict[str, Any]:
    """The option under the name that this transformers gives it; newer ones say activation checkpointing."""
    names = {part.name for part in fields(TrainingArguments)}
    word = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {word: True, f"{word}_kwargs": {"use_reentrant": False}}


def _default_save(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def train(
    model: nn.Module,
    processor: Any,
    train_set: "Sequence[Sample]",
    eval_set: "Sequence[Sample] | None" = None,
    settings: TrainSettings | None = None,
    *,
    output: str | Path,
    prompts: PromptSettings | None = None,
    eval_settings: EvalSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    context: Mapping[str, Any] | None = None,
    save: Callable[[nn.Module, Path], None] = _default_save,
    figures: bool = True,
) -> TrainResult:
    """Fine-tunes whatever parameters of ``model`` require a gradient and leaves a complete run folder.

    A run that was killed at any moment goes on with ``resume=True`` and ends with the weights of an uninterrupted run
    (same machine, same settings): order of images, prompts and optimizer are functions of seed, epoch and step.

    Args:
        model: A SamModel or PEFT model around one; frozen parameters stay as they are.
        processor: The model's SamProcessor.
        train_set: Training samples, see :mod:`samparser.data`.
        eval_set: Validation samples, scored during training and at the end; None: no scores.
        settings: See :class:`TrainSettings`; open values come from the recipe.
        output: The run folder; see :class:`RunFolder` for what is in it.
        prompts: Box or point prompts and their jitter, :class:`samparser.prompts.PromptSettings`.
        eval_settings: How the validation images are scored; by default with the kind of prompt of `prompts`.
        resume: Go on from the last whole checkpoint of ``output``.
        overwrite: Delete a run that is already in ``output``.
        context: Whatever else decides the result (model name, method, data), so that resuming compares it too.
        save: Writes the trained model to a folder; by default its own ``save_pretrained``.
        figures: Draw the curves, the coefficients and the best, median and worst image; takes seconds.

    Raises:
        RunFolderError: ``output`` holds another run.
        ValueError: Nothing to train, an empty set, an image in both sets, or a setting that makes no sense here.
        OutOfMemoryError: The device's memory did not suffice; the message names the settings that need less.
    """
    settings = (settings or TrainSettings()).resolved()
    prompts = prompts or PromptSettings()
    eval_settings = (eval_settings or EvalSettings()).resolved(prompts)
    _check(model, train_set, settings, eval_set)
    cache = open_cache(model, processor, settings)
    images = images_of(train_set, eval_set, settings)
    if cache is not None:
        cache.need(len(images))
    folder = RunFolder(Path(output))
    arguments = _training_arguments(folder, settings, has_eval=eval_set is not None)
    _check_loggers(arguments)
    if settings.precision == "fp16" and arguments.device.type == "cpu":
        # accelerate has no fp16 autocast on a CPU and would train in fp32 without a word.
        raise ValueError("precision is fp16, which needs a GPU; on a CPU train in fp32 or bf16.")
    everything = {
        **(context or {}),
        "train": settings.to_dict(),
        "prompts": asdict(prompts),
        "evaluation": asdict(eval_settings),
    }
    first_process = int(os.environ.get("RANK", "0")) == 0
    if first_process:
        folder.open(everything, resume=resume, overwrite=overwrite)
    with fed_from(cache, model, processor, images, arguments) as fed:
        data = RandomlyFlipped(train_set, settings.seed) if settings.flip else train_set
        trainer = _trainer(model, fed, data, eval_set, settings, prompts, eval_settings, folder, arguments)
        metrics, scores = _run(trainer, folder, eval_set, resume=resume, first_process=first_process)
    trainer.processor = processor
    if first_process:
        _write_results(trainer, folder, scores, save, metrics, figures=figures)
    trainer.accelerator.wait_for_everyone()
    before = scores_before(folder) if eval_set is not None and settings.score_before else None
    return TrainResult(folder, scores, trainer.state.global_step, before)


def _trainer(
    model: nn.Module,
    processor: Any,
    train_set: Any,
    eval_set: Any,
    settings: TrainSettings,
    prompts: PromptSettings,
    eval_settings: EvalSettings,
    folder: RunFolder,
    arguments: TrainingArguments,
) -> SamTrainer:
    prompted = PromptedDataset(train_set, processor, prompts, seed=settings.seed)
    callbacks: list[Any] = [
        EpochToDataset(prompted),
        LogBeforeCheckpoint(),
        JsonLinesLog(folder.log),
        CheckpointMark(folder.checkpoints),
    ]
    before = ScoreBefore(folder)
    if eval_set is not None and settings.score_before:
        callbacks.append(before)
    if settings.patience and arguments.eval_strategy != "no":
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = SamTrainer(
        model=model,
        args=arguments,
        settings=settings,
        eval_settings=eval_settings,
        train_dataset=prompted,
        eval_dataset=eval_set,
        data_collator=collate,
        processor=processor,
        callbacks=callbacks,
    )
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    trainer.add_callback(ProgressBar())
    before.trainer = trainer
    return trainer


def _run(
    trainer: SamTrainer, folder: RunFolder, eval_set: Any, *, resume: bool, first_process: bool
) -> tuple[Mapping[str, float], ScoreTable | None]:
    """Trains, from the last whole checkpoint on when ``resume`` is set, and scores the result."""
    checkpoint = folder.last_checkpoint() if resume else None
    trainer.accelerator.wait_for_everyone()
    if first_process:
        folder.remove_incomplete_checkpoints()
        # -1: a run without a checkpoint begins anew, before the row of step 0.
        step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else -1
        folder.rewind_log(step)
    trainer.accelerator.wait_for_everyone()
    with lean_decoder(trainer.model), advising(TRAINING):
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return outcome.metrics, _final_scores(trainer, eval_set)


def _final_scores(trainer: SamTrainer, eval_set: Any) -> ScoreTable | None:
    """Scores of the weights that are saved, over the whole validation set."""
    if eval_set is None:
        return None
    limited = trainer.settings.eval_limit is not None
    if limited or trainer.last_scores is None or trainer.state.best_global_step != trainer.state.global_step:
        trainer.settings = replace(trainer.settings, eval_limit=None)
        trainer.evaluate(metric_key_prefix="final")
    return trainer.last_scores


def _write_results(
    trainer: SamTrainer,
    folder: RunFolder,
    scores: ScoreTable | None,
    save: Callable[[nn.Module, Path], None],
    metrics: Mapping[str, float],
    *,
    figures: bool,
) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    save(model, folder.adapter)
    if scores is not None:
        scores.to_csv(folder.path / "scores.csv")
        scores.to_json(folder.path / "scores.json")
        if (folder.adapter / "README.md").is_file():
            chosen = trainer.args.load_best_model_at_end
            add_scores_to_card(
                folder.adapter / "README.md",
                scores,
                trainer.eval_dataset,
                train_set=trainer.train_dataset.dataset,
                before=scores_before(folder),
                chosen_by=trainer.settings.metric if chosen else None,
            )
    if figures:
        draw_figures(folder, model, trainer.processor, trainer.eval_dataset, scores, trainer.eval_settings)
    write_text(folder.path / "finished.json", json.dumps({"steps": trainer.state.global_step, **metrics}, indent=2))
