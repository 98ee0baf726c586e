"""What each row of an experiment costs on paper, from its model's configuration: needs no data and no weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, SamConfig

from samparser.methods import build, describe
from samparser.methods.cost import meta_sam, method_cost
from samparser.training.run_folder import versions

from .experiment import Experiment
from .strict import ExperimentError


def count_rows(experiment: Experiment, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Counts every row of an experiment.

    Args:
        experiment: Of its model only ``config.json`` is read.
        say: Gets one line for each finished row.

    Returns:
        By row: ``trained`` (parameters), ``bytes`` (file of the trained part), ``macs`` (see
        `samparser.methods.cost.Cost`) and ``versions``.

    Raises:
        ExperimentError: The model has no configuration of a SAM.
    """
    config = _config(experiment)
    costs = {}
    for number, row in enumerate(experiment.methods, start=1):
        cost = method_cost(row.method, row.options, config=config)
        about = describe(build(row.method, meta_sam(config), **row.options))
        costs[row.name] = {
            "trained": cost.trained,
            "bytes": about.bytes_on_disk,
            "macs": {
                "forward": cost.forward_macs,
                "step": cost.step_macs if cost.trained else None,
                "cached_step": cost.cached_step_macs if cost.trained else None,
                "merged": cost.merged_macs,
                "form": cost.form,
            },
            "versions": versions(),
        }
        say(f"[{number}/{len(experiment.methods)}] {row.name}: {cost.trained:,} parameters trained")
    return costs


def _config(experiment: Experiment) -> SamConfig:
    path = experiment.model_path()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{experiment.name}: the model {experiment.model!r} has no configuration that can be read ({error}). Give "
            f"a folder with config.json, relative to {Path(experiment.file).parent}, or a name on the hub."
        ) from error
    if not isinstance(config, SamConfig):
        raise ExperimentError(f"{experiment.name}: the model {experiment.model!r} is no SAM but {config.model_type!r}.")
    return config
