"""What each row of an experiment costs on paper, from its model's configuration: needs no data and no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from samparser.methods.cost import method_cost
from samparser.sam import FAMILIES
from samparser.sam.gated import no_access
from samparser.training.environment import versions

from .experiment import Experiment, MethodRow
from .strict import ExperimentError


def count_rows(experiment: Experiment, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Count every row of an experiment.

    Args:
        experiment: Of its model only `config.json` is read.
        say: Gets one line for each finished row.

    Returns:
        By row what `counted` gives, and `versions`.

    Raises:
        ExperimentError: The model has no configuration of a SAM.
    """
    config = _config(experiment)
    costs = {}
    for number, row in enumerate(experiment.methods, start=1):
        costs[row.name] = {**counted(row, config), "versions": versions()}
        say(f"[{number}/{len(experiment.methods)}] {row.name}: {costs[row.name]['trained']:,} parameters trained")
    return costs


def counted(row: MethodRow, config: Any) -> dict[str, Any]:
    """Count a row: trained parameters, bytes of the trained part's file, `macs` (see `samparser.methods.cost.Cost`)."""
    cost = method_cost(row.method, row.options, config=config)
    macs = {name: getattr(cost, f"{name}_macs") for name in ("forward", "step", "cached_step", "merged")}
    return {"trained": cost.trained, "bytes": cost.bytes_on_disk, "macs": {**macs, "form": cost.form}}


def _config(experiment: Experiment) -> Any:
    path = experiment.model_path()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if message := no_access(path, error):
            raise ExperimentError(f"{experiment.name}: {message}") from error
        raise ExperimentError(
            f"{experiment.name}: the model {experiment.model!r} has no configuration that can be read ({error}). Give "
            f"a folder with config.json, relative to {Path(experiment.file).parent}, or a name on the hub."
        ) from error
    if config.model_type not in FAMILIES:
        raise ExperimentError(f"{experiment.name}: the model {experiment.model!r} is no SAM but {config.model_type!r}.")
    return config
