"""Names the extra to install when an optional package is missing."""

from importlib import import_module
from types import ModuleType


def require(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports an optional package, or says which extra brings it.

    Args:
        module: Name to import, for instance ``"matplotlib.pyplot"``.
        purpose: What needs it, as the start of the message: ``"Drawing figures"``.
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
        raise ImportError(
            f'{purpose} needs {package}, which is not installed: pip install "samparser[{extra}]".', name=package
        ) from error
