"""Half precision in steps from images and from features: neck and decoder in it, the loss and its gradient not."""

import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prompts import collate
from samparser.sam import default_processor, neck_targets
from samparser.scoring import segmentation_loss
from samparser.training import TrainSettings, train, trainer
from tests.sam.tiny import TINY, make_tiny

from .conftest import PROMPTS
from .test_batches import fed, gradients, items_of, tuned


def trained(model_type, wrapped):
    """Coefficients or weights of the neck, and the mask decoder."""
    model = make_tiny(model_type)
    names = neck_targets(model)
    if wrapped:
        return get_peft_model(model, SVDCoefficientConfig(target_modules=names, modules_to_save=["mask_decoder"]))
    model.requires_grad_(False)
    for part in (*(model.get_submodule(name) for name in names), model.mask_decoder):
        part.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("model_type", "wrapped", "cached"),
    [("sam", True, False), ("sam", False, False), *((name, wrapped, True) for name in TINY for wrapped in (0, 1))],
)
def test_a_step_under_bf16_has_neck_and_decoder_in_it_and_the_loss_in_float32(
    model_type, wrapped, cached, toy_sets, tmp_path, monkeypatch
):
    model, found = trained(model_type, wrapped), {}
    plain = model.get_base_model() if wrapped else model

    def keep(name, tensor):
        found.setdefault(name, tensor.dtype)

    for name, module in (("neck", plain.get_submodule(neck_targets(plain)[0])), ("decoder", plain.mask_decoder)):
        module.register_forward_hook(lambda _, __, out, name=name: keep(name, out[0] if type(out) is tuple else out))

    def loss(logits, *arguments, **keywords):
        terms = segmentation_loss(logits, *arguments, **keywords)
        keep("logits", logits)
        keep("loss", terms.total)
        return terms

    monkeypatch.setattr(trainer, "segmentation_loss", loss)
    settings = TrainSettings(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, bf16=True, report_to="none"
    )
    settings.cache = str(tmp_path / "cache") if cached else None
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, default_processor(plain), toy_sets[0], None, settings, prompts=PROMPTS, figures=False)
    half, single = torch.bfloat16, torch.float32
    assert found == {"neck": half, "decoder": half, "logits": single, "loss": single}
    after = {name: p for name, p in model.named_parameters() if name in start}
    assert all(p.isfinite().all() and p.dtype == single for p in after.values())
    assert any(not torch.equal(after[name], before) for name, before in start.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 300.0])
@pytest.mark.parametrize("model_type", TINY)
def test_gradients_of_a_step_in_half_precision_are_finite_also_from_large_logits(model_type, dtype, size):
    model = tuned(model_type, torch.float32)
    with torch.no_grad():  # logits up to hundreds or thousands: masks that are sure of themselves
        for mlp in model.get_base_model().mask_decoder.modules_to_save.default.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(size)
    batch = collate(items_of(model, [1, 3], dtype=torch.float32))
    with fed(model, torch.float32), torch.autocast("cpu", dtype=dtype):
        logits = trainer.mask_logits(model, batch)
    assert logits.dtype == dtype
    terms = trainer.batch_loss(logits, batch, TrainSettings())
    assert terms.total.dtype == torch.float32
    (2.0**10 / size * terms.total).backward()  # a GradScaler scales less where gradients are large
    found = gradients(model)
    assert terms.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())
    coefficients = [gradient for name, gradient in found.items() if "svd_coefficient" in name]
    assert coefficients
    if size == 1:
        assert all(gradient.any() for gradient in coefficients)
