"""EdgeTAM: its norms, and what it needs."""

import sys

import pytest
import torch
import transformers
from packaging.version import Version
from peft import get_peft_model

from samparser.sam import count_coefficients, family_of, load_sam, neck_targets
from samparser.tuner import SVDCoefficientConfig
from tests.sam.tiny import make_tiny

TOO_OLD = Version(transformers.__version__) < Version("5.20")
needs_new = pytest.mark.skipif(TOO_OLD, reason="transformers before 5.20 asks the hub for a part of EdgeTAM's config")


def test_a_transformers_that_is_too_old_is_refused_with_the_release_that_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(transformers, "__version__", "5.19.4")
    (tmp_path / "config.json").write_text('{"model_type": "edgetam"}')
    with pytest.raises(
        ImportError, match=r"EdgeTamModel needs transformers 5\.20 or newer; this is 5\.19\.4: pip install"
    ):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "sam", "vision_config": 7}')
    with pytest.raises(OSError, match="cannot be read"):
        load_sam(tmp_path)


@needs_new
def test_a_missing_timm_ends_in_one_message_with_the_command(monkeypatch, tmp_path):
    transformers.EdgeTamConfig().save_pretrained(tmp_path)  # reads timm where it is installed
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ImportError, match=r"EdgeTAM's image encoder needs timm.*: pip install .*timm"):
        load_sam(tmp_path)


@needs_new
def test_a_config_that_cannot_be_read_without_timm_names_it_too(tmp_path):
    if transformers.utils.is_timm_available():
        pytest.skip("timm is installed")
    (tmp_path / "config.json").write_text(
        '{"model_type": "edgetam", "vision_config": {"model_type": "edgetam_vision_model", '
        '"backbone_config": {"model_type": "timm_wrapper", "architecture": "repvit_m1"}}}'
    )
    with pytest.raises(ImportError, match=r"needs a package that is not here: .*pip install timm"):
        load_sam(tmp_path)


def test_a_timm_that_does_not_work_is_told_with_its_reason(monkeypatch):
    from samparser.sam.families import edgetam

    def broken(*_, **__):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(edgetam, "require", broken)
    with pytest.raises(ImportError, match=r"cannot be imported here: operator torchvision::nms .*same index"):
        edgetam._require_timm()


def test_the_tuner_takes_a_model_that_names_no_input_embedding():
    model = make_tiny("edgetam")
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    tuned = get_peft_model(model, SVDCoefficientConfig(target_modules=neck_targets(model)))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == count_coefficients(model)


def test_encoding_in_train_mode_leaves_the_statistics_of_the_norms():
    model = make_tiny("edgetam").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    family_of(model).encode(model, torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@needs_new
def test_the_published_model_has_the_counted_neck():
    pytest.importorskip("timm", exc_type=ImportError)
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    )
    with torch.device("meta"):
        model = transformers.EdgeTamModel(transformers.EdgeTamConfig(vision_config={"backbone_config": backbone}))
    assert count_coefficients(model) == 592
