"""Training and scoring on `transformers.Trainer`: settings in, a complete run folder out.

This room sees which parameters require a gradient and never asks which method made them trainable.
"""

from samparser._memory import OutOfMemoryError

from .also import AlsoSettings, Forgetting
from .eval_settings import EvalSettings
from .evaluation import evaluate, evaluate_baselines
from .fit import TrainResult, train
from .run_folder import RunFolder, RunFolderError
from .score_before import verdict
from .settings import RECIPES, TrainSettings
from .stopping import Stopped
from .trainer import SamTrainer

__all__ = [
    "RECIPES",
    "AlsoSettings",
    "EvalSettings",
    "Forgetting",
    "OutOfMemoryError",
    "RunFolder",
    "RunFolderError",
    "SamTrainer",
    "Stopped",
    "TrainResult",
    "TrainSettings",
    "evaluate",
    "evaluate_baselines",
    "train",
    "verdict",
]
