"""The score against the scale of an adapter."""

import copy

import pytest
import torch

from samparser.inspection import Curve, Score, at_scale, interpolate, open_adapters
from samparser.methods import load_model
from samparser.training import evaluate
from tests.conftest import make_tiny_sam

from .conftest import tuned


def state(model):
    scalings = [str(module.scaling) for module in model.modules() if hasattr(module, "svd_coefficient_p")]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return copy.deepcopy(model.state_dict()), scalings, flags, list(model.active_adapters)


def assert_same_state(before, after):
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:] == after[1:]


def test_scale_0_is_the_base_and_1_the_adapter_whatever_is_trained_and_nothing_stays_changed(folders, evaluation):
    model, processor = open_adapters([folders["plain"], folders["decoder"]])
    before = state(model)
    base = evaluate(make_tiny_sam(), processor, evaluation.dataset, limit=3, progress=False)
    for name in ("plain", "decoder"):
        curve = interpolate(model, name, evaluation, scales=(0.0, 0.5, 1.0))
        alone, _ = load_model(folders[name])
        expected = evaluate(alone, processor, evaluation.dataset, limit=3, progress=False)
        assert (curve.scores[0].miou, curve.scores[0].f1) == (base.miou, base.f1)
        assert (curve.scores[2].miou, curve.scores[2].f1) == (expected.miou, expected.f1)
        assert curve.gains[2].miou == pytest.approx(expected.miou - base.miou, abs=1e-12)
        assert (curve.gains[0].miou, curve.gains[0].miou_error) == (0, 0)
        assert curve.scores[0].images == 3
    assert_same_state(before, state(model))


@torch.no_grad()
def test_weights_lie_on_the_line_and_come_back_after_an_error():
    model = tuned(decoder=True, expansion="pairs")
    before = state(model)
    weight = {}
    decoder = model.get_base_model().mask_decoder
    for scale in (0.0, 1.0, 1.5):
        with at_scale(model, "default", scale):
            layer = model.get_base_model().vision_encoder.neck.conv1
            weight[scale] = layer.weight.clone(), decoder.modules_to_save["default"].mask_tokens.weight.clone()
    assert torch.equal(weight[0.0][0], layer.base_weight)
    assert torch.equal(weight[0.0][1], decoder.original_module.mask_tokens.weight)
    assert torch.equal(
        weight[1.0][1], before[0]["base_model.model.mask_decoder.modules_to_save.default.mask_tokens.weight"]
    )
    for start, trained, beyond in zip(weight[0.0], weight[1.0], weight[1.5], strict=True):
        torch.testing.assert_close(beyond, start + 1.5 * (trained - start))
    with pytest.raises(RuntimeError, match="stop"), at_scale(model, "default", 0.3):
        raise RuntimeError("stop")
    assert_same_state(before, state(model))


def test_the_best_scale_is_marked_and_the_smaller_of_equals_wins():
    scores = tuple(Score(miou, 0.5, 0.01, 0.01, 4) for miou in (0.6, 0.7, 0.7))
    curve = Curve("mine", (0.0, 0.5, 1.0), scores, scores)
    assert curve.best == 1
    assert [line.endswith("best") for line in str(curve).splitlines()] == [False, False, False, True, False]


@pytest.mark.parametrize("scales", [(), (0.0, float("nan")), (float("inf"),)])
def test_scales_that_are_none_are_refused(scales, evaluation):
    with pytest.raises(ValueError, match=r"scales=\[.*\] has to hold at least one number, and only finite ones"):
        interpolate(tuned(), "default", evaluation, scales)
