"""One call trains a SAM from the first step to a complete run folder, or goes on where a killed run stopped."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import EarlyStoppingCallback, IntervalStrategy, PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from samparser._files import filling_folder
from samparser._memory import TRAINING, advising
from samparser._untrusted import read_json
from samparser.data.flips import RandomlyFlipped
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam.changes import mark_tuned
from samparser.sam.lean import lean_decoder
from samparser.sam.wrapped import plain_model
from samparser.scoring.table import ScoreTable

from .also import Forgetting, ScoreAlsoBefore, forgetting_of, scores_also_before, tight, write_also
from .caching import fed_from, images_of, open_cache
from .callbacks import CheckpointMark, EpochToDataset, JsonLinesLog, LogBeforeCheckpoint, ProgressBar
from .checkpoints import last_whole, set_aside
from .checks import check_request
from .choosing_terms import choose_terms, keep_choice
from .eval_settings import EvalSettings
from .hub import push_adapter
from .processes import agreed
from .report import write_results
from .run_folder import RunFolder
from .score_before import ScoreBefore, scores_before
from .settings import MAY_DIFFER, TrainSettings
from .stopping import stoppable
from .trainer import SamTrainer

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
            `score_before` was off.
        also: The final scores on the other set; None without one.
        forgetting: What was lost there; None without one or where `score_before` was off.
    """

    folder: RunFolder
    scores: ScoreTable | None
    steps: int
    before: ScoreTable | None = None
    also: ScoreTable | None = None
    forgetting: Forgetting | None = None


def _default_save(model: nn.Module, folder: Path) -> None:
    with filling_folder(folder) as stage:
        model.save_pretrained(stage)  # type: ignore[operator]


def train(
    model: nn.Module,
    processor: Any,
    train_set: Sequence[Sample],
    eval_set: Sequence[Sample] | None,
    settings: TrainSettings,
    *,
    prompts: PromptSettings | None = None,
    eval_settings: EvalSettings | None = None,
    also: Sequence[Sample] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    context: Mapping[str, Any] | None = None,
    save: Callable[[nn.Module, Path], None] = _default_save,
    figures: bool = True,
) -> TrainResult:
    """Fine-tune whatever parameters of `model` require a gradient and leave a complete run folder.

    A run that was killed at any moment goes on with `resume=True` and ends with the weights of an uninterrupted run
    (same machine, same settings): order of images, prompts and optimizer are functions of seed, epoch and step.

    The mask decoder works as in `samparser.sam.lean_decoder`, in this thread only; no other thread may use the model
    while its weights and modes change.

    Args:
        model: A model of a SAM family or a PEFT model around one; frozen parameters stay as they are.
        processor: The model's processor.
        train_set: Training samples, see `samparser.data`.
        eval_set: Validation samples, scored during training and at the end; None: no scores.
        settings: How to train; `settings.output_dir` is the run folder, see `RunFolder` for what is in it. Directions
            of an expansion that have not been chosen are chosen first, see `choose_terms`.
        prompts: Box or point prompts and their jitter.
        eval_settings: How the validation images are scored; by default with the kind of prompt of `prompts`.
        also: Samples of another data set, scored with tight boxes before the first step (where `score_before` is on)
            and at the end: what the model could do before, and what it lost of that. They choose nothing.
        resume: Go on from the last whole checkpoint of the run folder.
        overwrite: Delete a run that is already in the run folder.
        context: Whatever else decides the result (model name, method, data), so that resuming compares it too.
        save: Writes the trained model to a folder; by default its own `save_pretrained`.
        figures: Draw the curves, the coefficients and the best, median and worst image; takes seconds.

    Returns:
        The run folder, and the scores before and after.

    Raises:
        RunFolderError: The run folder holds another run, or another process writes it.
        Stopped: Ctrl-C or SIGTERM; the run can be resumed.
        ValueError: Nothing to train, an empty set, an image that is both trained on and scored, or a setting that
            makes no sense here.
        OutOfMemoryError: The device's memory did not suffice; the message names the settings that need less.
    """
    prompts = prompts or PromptSettings()
    eval_settings = (eval_settings or EvalSettings()).resolved(prompts)
    check_request(model, train_set, eval_set, settings, also)
    cache = open_cache(model, processor, settings)
    images = images_of(train_set, eval_set, settings, also)
    if cache is not None:
        cache.need(len(images))
    folder = RunFolder(Path(str(settings.output_dir)))
    everything = {
        **(context or {}),
        "train": settings.recorded(),
        "prompts": asdict(prompts),
        "evaluation": asdict(eval_settings),
        **({} if also is None else {"also_images": len(also)}),
        # As many images a step as there are processes: with others it is another run.
        **({} if settings.world_size == 1 else {"processes": settings.world_size}),
    }
    first_process = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as held:
        held.enter_context(stoppable(folder.path))
        if first_process:
            held.enter_context(folder.locked())
            free = {f"train.{name}" for name in MAY_DIFFER}
            needed = _needed(model, (train_set, eval_set, also), settings, context or {})
            folder.open(everything, resume=resume, overwrite=overwrite, may_differ=free, needed=needed)
            # A damaged table is named now rather than at the end.
            scores_before(folder)
            scores_also_before(folder)
        with fed_from(cache, model, processor, images, settings) as fed:
            data = RandomlyFlipped(train_set, settings.seed) if settings.flip else train_set
            prompted = PromptedDataset(data, fed, prompts, seed=settings.seed)
            chosen = choose_terms(model, prompted, settings)
            if chosen is not None:
                mine = folder if first_process else None
                keep_choice(model, mine, chosen, resume=resume, show=not settings.disable_tqdm)
            arguments = _arguments(settings, folder, eval_set)
            trainer = _trainer(model, fed, prompted, eval_set, arguments, folder, eval_settings)
            if also is not None and settings.score_before:
                trainer.add_callback(ScoreAlsoBefore(folder, also, trainer))
            if plain_model(model) is model:
                mark_tuned(model)
            metrics, scores = _run(trainer, folder, resume=resume, first_process=first_process)
            also_scores = None if also is None else trainer.score(also, settings=tight(eval_settings))
        trainer.processor = processor
        forgetting = None
        if also_scores is not None and settings.score_before:
            forgetting = forgetting_of(folder, also, also_scores)
        if first_process:
            if also_scores is not None:
                write_also(folder, also_scores, forgetting)
            write_results(trainer, folder, scores, save, metrics, figures=figures, forgetting=forgetting)
            if settings.push_to_hub:
                push_adapter(folder, settings)
        trainer.accelerator.wait_for_everyone()
    before = scores_before(folder) if eval_set is not None and settings.score_before else None
    return TrainResult(folder, scores, trainer.state.global_step, before, also_scores, forgetting)


def _needed(
    model: nn.Module, data: tuple[Any, Any, Any], settings: TrainSettings, context: Mapping[str, Any]
) -> dict[str, str | Path]:
    """Return what the run reads, by name, as far as it lies on this machine."""
    train_set, eval_set, also = data
    found = {
        "The cache": settings.cache,
        "The training data": getattr(train_set, "root", None),
        "The validation data": getattr(eval_set, "root", None),
        "The other data": getattr(also, "root", None),
        "The model": context.get("model"),
        "The base model": getattr(plain_model(model), "name_or_path", None),
    }
    return {what: path for what, path in found.items() if path and Path(path).exists()}


def _arguments(settings: TrainSettings, folder: RunFolder, eval_set: Any) -> TrainSettings:
    """Return the settings as the trainer takes them, which knows no run folder around its checkpoints."""
    arguments = copy.copy(settings)
    arguments.output_dir = str(folder.checkpoints)
    arguments.data_seed = settings.seed if settings.data_seed is None else settings.data_seed
    # The adapter is uploaded, not the checkpoints.
    arguments.push_to_hub = False
    # A resumed run goes on counting the evaluations without a better score.
    arguments.restore_callback_states_from_checkpoint = settings.early_stopping_patience is not None
    if eval_set is None:
        arguments.eval_strategy, arguments.load_best_model_at_end = IntervalStrategy.NO, False
    if "tensorboard" in (settings.report_to or ()):
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
    return arguments


def _trainer(
    model: nn.Module,
    processor: Any,
    prompted: PromptedDataset,
    eval_set: Any,
    arguments: TrainSettings,
    folder: RunFolder,
    eval_settings: EvalSettings,
) -> SamTrainer:
    callbacks: list[Any] = [
        EpochToDataset(prompted),
        LogBeforeCheckpoint(),
        JsonLinesLog(folder.log),
        CheckpointMark(folder.checkpoints),
    ]
    before = ScoreBefore(folder)
    if eval_set is not None and arguments.score_before:
        callbacks.append(before)
    if arguments.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=arguments.early_stopping_patience))
    trainer = SamTrainer(
        model=model,
        args=arguments,
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
    trainer: SamTrainer, folder: RunFolder, *, resume: bool, first_process: bool
) -> tuple[Mapping[str, float], ScoreTable | None]:
    """Train, from the last whole checkpoint on when `resume` is set, and score the result."""
    checkpoint = None
    if first_process and resume:
        needs_best = trainer.args.load_best_model_at_end
        checkpoint = last_whole(folder.checkpoints, needs_best=needs_best, warn=True)
    # The others read nothing before the first process has made the folder ready and chosen.
    checkpoint = agreed(checkpoint, folder)
    if first_process:
        set_aside(folder.checkpoints, checkpoint)
        # -1: a run without a checkpoint begins anew, before the row of step 0.
        step = read_json(checkpoint / TRAINER_STATE_NAME)["global_step"] if checkpoint else -1
        folder.rewind_log(step)
    trainer.accelerator.wait_for_everyone()
    with lean_decoder(trainer.model), advising(TRAINING):
        if checkpoint is not None and _take_up_ended(trainer, checkpoint):
            return {}, _final_scores(trainer)
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _load_kept(trainer)
        return outcome.metrics, _final_scores(trainer)


def _take_up_ended(trainer: SamTrainer, checkpoint: Path) -> bool:
    """Load the weights to keep where training had ended with this checkpoint, since transformers takes a step more.

    Returns:
        Whether training had ended.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    # A checkpoint of a shorter run that somebody put here is no end of this one.
    if not control.get("should_training_stop", False) or trainer.args.max_steps not in (-1, state.max_steps):
        return False
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    _load_kept(trainer)
    scored = [row["step"] for row in state.log_history if "eval_miou" in row]
    trainer.last_scored_step = scored[-1] if scored else None
    return True


def _load_kept(trainer: SamTrainer) -> None:
    """Load the best weights where those are kept; transformers does not find those of a named adapter."""
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    if best and best != trainer.state.global_step:
        trainer._load_from_checkpoint(str(Path(str(trainer.args.output_dir)) / f"checkpoint-{best}"))


def _final_scores(trainer: SamTrainer) -> ScoreTable | None:
    """Return the scores of the weights that are saved, over the whole validation set."""
    if trainer.eval_dataset is None:
        return None
    chosen = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    limited = trainer.args.eval_limit is not None
    if limited or trainer.last_scored_step != (chosen or trainer.state.global_step):
        trainer.evaluate(metric_key_prefix="final")
    elif trainer.last_scores is None:
        trainer.last_scores = trainer.score(trainer.eval_dataset)
    return trainer.last_scores
