"""Checkpoints on the Hugging Face hub that not everybody may fetch: what to do about one."""

from __future__ import annotations


def no_access(source: str, error: BaseException) -> str | None:
    """Return what keeps a checkpoint from being fetched and how to get it, or None where access is not the matter.

    Args:
        source: Its name on the hub.
        error: What fetching it raised; the hub's own error may be among its causes.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if isinstance(cause, GatedRepoError) or status in (401, 403):
                return (
                    f"{source} may not be fetched with this login from the Hugging Face hub (status {status}): it is "
                    f"gated, private, or not there. Check the spelling, or ask for access on "
                    f"https://huggingface.co/{source} and wait until it is given, then run `hf auth login` here with a "
                    "token of the account that has it."
                )
        cause = cause.__cause__ or cause.__context__
    return None
