"""Checkpoints that not everybody may fetch: one message that says what to do."""

from types import SimpleNamespace

import pytest
import transformers
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from samparser.sam import load_sam
from samparser.sam.gated import no_access


def hub_error(kind, status):
    error = kind.__new__(kind)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(("kind", "status"), [(GatedRepoError, 403), (HfHubHTTPError, 401), (HfHubHTTPError, 403)])
def test_a_gated_checkpoint_ends_in_one_message(monkeypatch, kind, status):
    def fetch(*_, **__):
        raise OSError("You are trying to access a gated repo.") from hub_error(kind, status)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fetch)
    with pytest.raises(OSError, match=rf"facebook/sam3 may not be fetched .*{status}.*ask for access.*hf auth login"):
        load_sam("facebook/sam3")


def test_other_errors_are_no_matter_of_access():
    error = OSError("no connection")
    error.__cause__ = hub_error(HfHubHTTPError, 500)
    assert no_access("facebook/sam3", error) is None
