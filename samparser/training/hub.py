"""Upload of the finished run's adapter to the Hugging Face hub, for `push_to_hub`."""

from __future__ import annotations

from huggingface_hub import HfApi

from samparser.methods.publishing import published_copy

from .run_folder import RunFolder
from .settings import TrainSettings


def push_adapter(folder: RunFolder, settings: TrainSettings) -> str:
    """Upload the adapter's folder without paths of this machine, and make the repository where there is none.

    Returns:
        The address of the commit.
    """
    api = HfApi(token=settings.hub_token)
    repo = api.create_repo(settings.hub_model_id, private=settings.hub_private_repo, exist_ok=True).repo_id
    if settings.hub_revision is not None:
        api.create_branch(repo, branch=settings.hub_revision, exist_ok=True)
    with published_copy(folder.adapter) as (copy, _):
        commit = api.upload_folder(
            repo_id=repo, folder_path=copy, revision=settings.hub_revision, commit_message="Upload adapter"
        )
    return str(commit)
