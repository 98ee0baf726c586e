"""Packages that only some rooms need: the message for a missing one names a command that installs it."""

from __future__ import annotations

import re
from importlib import import_module, metadata
from types import ModuleType

# Packages that are imported by another name than they are installed by.
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Import an optional package, or say how to install it and what else its extra still lacks.

    Args:
        module: Name to import, for instance `matplotlib.pyplot`.
        purpose: What needs it, as the start of the message: `Drawing figures`.
        extra: The extra of samparser that lists the package.

    Raises:
        ImportError: The package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        # By name, for a package that is on no index has its extras only where it was installed from.
        wanted = _DISTRIBUTIONS.get(package, package)
        named = [text for name, text in _requirements(extra) if name == wanted or not _is_installed(name)]
        missing = " ".join(f'"{text}"' for text in named) or wanted
        raise ImportError(
            f"{purpose} needs {package}, which is not installed: pip install {missing} (samparser's extra {extra!r}).",
            name=package,
        ) from error


def _requirements(extra: str) -> list[tuple[str, str]]:
    """What an extra of samparser lists, as names and as pip takes them."""
    try:
        lines = metadata.requires("samparser") or []
    except metadata.PackageNotFoundError:  # a checkout on the path, installed by nobody
        return []
    found = []
    for line in lines:
        text, _, condition = line.partition(";")
        name = re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0]
        # An extra that contains another lists samparser itself; what it contains is asked for by its own name.
        if f"'{extra}'" in condition.replace('"', "'") and name != "samparser":
            found.append((name, text.strip()))
    return found


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
