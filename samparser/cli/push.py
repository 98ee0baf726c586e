"""`samparser push`: upload an adapter folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

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
        api = huggingface_hub.HfApi()
        api.create_repo(command.repo, private=command.private, exist_ok=True)
        print(api.upload_folder(repo_id=command.repo, folder_path=copy, commit_message="Upload adapter"))
    return 0
