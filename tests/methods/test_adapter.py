import copy

import pytest
import torch
from torch import nn

from samparser.methods import build
from samparser.methods.adapted_layers import adapted_layer
from samparser.methods.adapter import ConvolutionalAdapter, HoulsbyAdapter
from tests.conftest import TINY_SIZE, make_tiny_sam

from .conftest import masks

WHERE = {"device": torch.device("cpu"), "dtype": torch.float32}


def test_the_convolutional_adapter_starts_as_the_identity_bit_for_bit(tiny_inputs):
    plain = make_tiny_sam()
    before = masks(plain, tiny_inputs)
    assert torch.equal(masks(build("adapter", plain), tiny_inputs), before)


def test_the_adapter_of_houlsby_et_al_starts_close_to_the_identity(generator):
    torch.manual_seed(0)
    adapter = HoulsbyAdapter(24, 12, **WHERE)
    x = torch.randn(50, 24, generator=generator)
    with torch.no_grad():
        difference = (adapter(x) - x).norm() / x.norm()
    assert 0 < difference < 0.01
    weights = torch.cat([adapter.down.weight.flatten(), adapter.up.weight.flatten()])
    assert weights.abs().max() <= 0.02
    assert 0.007 < weights.std() < 0.01  # A normal cut at two deviations has 0.88 of its deviation.
    assert not adapter.down.bias.any()
    assert not adapter.up.bias.any()


def test_the_convolutional_adapter_is_two_projections_around_a_depthwise_convolution(generator):
    adapter = ConvolutionalAdapter(8, 4, 5, **WHERE)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(1, 6, 7, 8, generator=generator)
    with torch.no_grad():
        got = adapter(x)[0]
        narrow = torch.zeros(6 + 4, 7 + 4, 4)  # zero padding of 2 on each side
        narrow[2:-2, 2:-2] = x[0] @ adapter.down.weight.T
        for row in range(6):
            for column in range(7):
                window = narrow[row : row + 5, column : column + 5]
                convolved = torch.einsum("ijc,cij->c", window, adapter.conv.weight[:, 0]) + adapter.conv.bias
                expected = x[0, row, column] + adapter.up.weight @ convolved.clamp(min=0)
                torch.testing.assert_close(got[row, column], expected, rtol=1e-4, atol=1e-5)


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return torch.zeros_like(x)


@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
def test_the_adapter_takes_the_attention_output_on_the_whole_grid_before_the_residual_sum(index, generator):
    layer = make_tiny_sam().vision_encoder.layers[index]
    recorder = _Recorder()
    adapted = adapted_layer("layer", layer, recorder)
    x = torch.randn(1, 6, 6, 24, generator=generator)  # 6 is no multiple of the window's 4: the windows are padded
    with torch.no_grad():
        without_attention = adapted(x)
        torch.testing.assert_close(without_attention, x + layer.mlp(layer.layer_norm2(x)))
        recorded = recorder.seen
        assert recorded is not None
        assert recorded.shape == x.shape
        summed = x + recorded
        torch.testing.assert_close(layer(x), summed + layer.mlp(layer.layer_norm2(summed)))


def test_adapted_layers_are_still_recorded_and_checkpointed_as_layers_of_sam(tiny_inputs):
    model = build("adapter", make_tiny_sam())
    hidden = model(**tiny_inputs, output_hidden_states=True).vision_hidden_states
    assert len(hidden) >= 2
    plain_loss_gradients = _gradients(copy.deepcopy(model), tiny_inputs)
    model.vision_encoder.gradient_checkpointing = False
    for layer in model.vision_encoder.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda function, *args: torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False
        )
    checkpointed = _gradients(model, tiny_inputs)
    assert plain_loss_gradients.keys() == checkpointed.keys()
    for name, gradient in checkpointed.items():
        torch.testing.assert_close(gradient, plain_loss_gradients[name])


def _gradients(model, inputs):
    model.train()
    model(**inputs, multimask_output=False).pred_masks.sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_parts_of_an_adapted_layer_keep_their_names():
    plain = make_tiny_sam()
    names = set(plain.state_dict())
    adapted = set(build("adapter", plain).state_dict())
    assert names < adapted
    assert {name.split(".adapter.")[1] for name in adapted - names} == {
        "down.weight",
        "conv.weight",
        "conv.bias",
        "up.weight",
    }


@pytest.mark.parametrize("name", ["adapter", "adapter-houlsby"])
def test_adapters_of_a_bfloat16_model_are_float32_and_its_output_stays_bfloat16(name, tiny_inputs):
    model = build(name, make_tiny_sam().to(torch.bfloat16))
    assert {p.dtype for key, p in model.named_parameters() if ".adapter." in key} == {torch.float32}
    tokens = torch.zeros(1, TINY_SIZE // 8, TINY_SIZE // 8, 24, dtype=torch.bfloat16)
    assert model.vision_encoder.layers[0](tokens).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adapter", {"bottleneck": 0}, "bottleneck is 0; it must be 1 or more"),
        ("adapter-houlsby", {"bottleneck": -3}, "bottleneck is -3; it must be 1 or more"),
        ("adapter", {"kernel": 4}, "convolution is 4; it must be odd"),
    ],
)
def test_impossible_sizes_are_refused(name, options, message, tiny_sam):
    with pytest.raises(ValueError, match=message):
        build(name, tiny_sam, **options)
