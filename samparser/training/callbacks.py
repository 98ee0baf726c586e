"""Callbacks of the trainer: what a run shows and writes while it goes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import ProgressCallback, TrainerCallback

from .checkpoints import mark_complete

# Bookkeeping of transformers that says nothing about the result.
_HIDDEN = {"total_flos", "step", "epoch"}


def _short(logs: dict[str, Any]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in logs.items() if name not in _HIDDEN and isinstance(value, float)]
    return ", ".join(shown)


class ProgressBar(ProgressCallback):
    """transformers' progress bar with one short readable line for each log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the entry above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "train_runtime" not in logs:
            self.training_bar.write(f"step {state.global_step}, epoch {state.epoch or 0:.2f}: {_short(logs)}")


class JsonLinesLog(TrainerCallback):
    """Append every log entry to a file, one JSON object per line, flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append the entry with its step; only the first process writes. Run times go to `finished.json`."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            row = {"step": state.global_step, **{k: v for k, v in logs.items() if k not in ("step", "total_flos")}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class CheckpointMark(TrainerCallback):
    """Mark a checkpoint as complete once all of its files are written, by every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where the best checkpoint is now; a resumed run may have been moved since it wrote its path."""
        if state.best_model_checkpoint is not None:
            state.best_model_checkpoint = str(self.folder / Path(state.best_model_checkpoint).name)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the mark, once the last process has written what it keeps of its own, the state of its generators."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(self.folder / f"checkpoint-{state.global_step}")


class LogBeforeCheckpoint(TrainerCallback):
    """Log wherever a checkpoint is written.

    The running mean of the loss is not part of a checkpoint; starting it anew at each one makes the log of a resumed
    run equal to that of an uninterrupted run.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a log entry when this step ends with a checkpoint."""
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a log entry when this epoch ends with a checkpoint."""
        control.should_log = control.should_log or control.should_save


class EpochToDataset(TrainerCallback):
    """Tell the training set which epoch begins, so that it draws new prompts.

    accelerate does so itself on one process only; on several it stops at the sampler.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass on the number of epochs that are behind, also where a run is resumed within one."""
        self.dataset.set_epoch(math.floor((state.epoch or 0) + 1e-6))
