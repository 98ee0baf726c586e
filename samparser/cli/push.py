"""`samparser push`: upload an adapter folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from samparser._options import option
from samparser.methods.publishing import published_copy

from .parser import SettingsParser


@dataclass(frozen=True)
class PushCommand:
    """Upload an adapter folder to the Hugging Face hub."""

    adapter: str = option("Folder of the adapter (for instance RUN/adapter).")
    repo: str = option("Hub repository, for instance name/sam-nuclei.")
    private: bool = option("Make the repository private.", False)


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "push",
        {"what to upload": PushCommand},
        ("adapter", "repo"),
        example="samparser push runs/mine/adapter my-name/sam-mine --private",
    )


def run(arguments: Sequence[str]) -> int:
    """Upload, and print the address."""
    (command,) = parser().parse(arguments)
    folder = Path(command.adapter)
    if not any((folder / name).is_file() for name in ("adapter_config.json", "method.json")):
        raise ValueError(
            f"{folder} holds nothing that was trained (no adapter_config.json, no method.json); give RUN/adapter."
        )
    with published_copy(folder) as (copy, replaced):
        if replaced is not None:
            print(f"Uploaded without where things lie here: {replaced}.")
        print(_upload(command, copy))
    return 0


def _upload(command: PushCommand, folder: Path) -> str:
    """Upload a folder and return the address.

    Raises:
        ValueError: The repository cannot be called so.
        OSError: The hub cannot be reached, or does not let this user write there.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(command.repo, private=command.private, exist_ok=True)
        address = api.upload_folder(repo_id=command.repo, folder_path=folder, commit_message="Upload adapter")
    except HFValidationError:
        raise
    except Exception as error:  # the errors of a connection are of whatever package the hub's client speaks through
        raise OSError(
            f"{command.adapter} was not uploaded to {command.repo} ({type(error).__name__}: {error}). Look at the "
            "connection, at HF_HUB_OFFLINE, and whether `hf auth whoami` names a user who may write there; `hf auth "
            "login` asks for a token. The same command can be given again."
        ) from error
    return str(address)
