"""What each row of an experiment costs on paper, from its model's configuration: needs no data and no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from samparser.methods.cost import meta_model, method_cost
from samparser.sam.families import family_of_config
from samparser.sam.gated import no_access
from samparser.training.environment import versions

from .experiment import Experiment, MethodRow
from .plan import applied_without_weights
from .strict import ExperimentError


def count_rows(experiment: Experiment, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Count every row of an experiment.

    Args:
        experiment: Of its model only `config.json` is read.
        say: Gets one line for each finished row.

    Returns:
        By row what `counted` gives, and `versions`.

    Raises:
        ExperimentError: The model has no configuration of a SAM family, or needs a package that is not installed, or
            a row's method cannot be applied to this family; found before the first row is counted.
    """
    config = _config(experiment)
    model = meta_model(config)
    for row in experiment.methods:  # refuses what cannot be applied before the first one is counted
        applied_without_weights(row, model)
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
    except ImportError as error:  # EdgeTAM's config asks for timm
        raise ExperimentError(
            f"{experiment.name}: the model {experiment.model!r} needs a package that is not installed: "
            f"{' '.join(str(error).split())}"
        ) from error
    try:
        family_of_config(config, "Counting")
    except TypeError as error:
        raise ExperimentError(f"{experiment.name}: the model {experiment.model!r} is of no family. {error}") from error
    return config
