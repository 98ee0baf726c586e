"""The launchers by name; each engine is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samparser._words import did_you_mean

from .launcher import Launcher
from .strict import ExperimentError
from .tasks import Place

LAUNCHERS = ("processes", "submitit", "ray")


def check_launcher(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown launcher, and options for the one that has none.

    Raises:
        ExperimentError: The message says what is possible.
    """
    if name not in LAUNCHERS:
        raise ExperimentError(
            f"There is no launcher {name!r}.{did_you_mean(name, LAUNCHERS)} Known are {', '.join(LAUNCHERS)}."
        )
    if name == "processes" and options:
        raise ExperimentError(
            f"launcher_options ({', '.join(options)}) are for the launchers submitit and ray; leave them out, or name "
            "one of those."
        )


def make_launcher(name: str, place: Place, processes: int | None, options: Mapping[str, Any]) -> Launcher | None:
    """Return the launcher of that name, ready to start tasks; None for the processes of this machine.

    Raises:
        ExperimentError: The engine does not know an option, or is not there.
        ImportError: Its package is not installed.
    """
    if name == "submitit":
        from .on_submitit import SubmititLauncher

        return SubmititLauncher(place, processes, options)
    if name == "ray":
        from .on_ray import RayLauncher

        return RayLauncher(place, processes, options)
    return None
