"""Attention with absorbed projections against transformers' own, and the rule that chooses between them."""

import copy
import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamAttention

from samparser.sam.absorbed_attention import absorbed_attention_class, absorbing_is_cheaper, is_plain_attention
from samparser.sam.switched_class import switched

HIDDEN, INTERNAL, HEADS = 24, 12, 3


def attention_pair(hidden=HIDDEN, heads=HEADS, implementation="eager"):
    """Transformers' layer, eager to show its weights, and the same layer that absorbs, with the same parameters."""
    config = SamMaskDecoderConfig(hidden_size=hidden, num_attention_heads=heads)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    plain, lean = SamAttention(config).double(), SamAttention(config).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    lean.load_state_dict(plain.state_dict())
    return plain, lean


def absorbing(layer):
    return switched([(layer, absorbed_attention_class(SamAttention))])


def results(layer, query, key, value, **options):
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    output, weights = layer(*inputs, **options)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return output.detach(), None if weights is None else weights.detach(), [x.grad for x in inputs], gradients


@settings(deadline=None)
@given(
    images=st.integers(1, 2),
    instances=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_outputs_weights_and_gradients_are_those_of_plain_attention(images, instances, queries, keys, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(images, instances, length, HIDDEN, generator=generator, dtype=torch.float64)
        for length in (queries, keys, keys)
    )
    plain, lean = attention_pair()
    # The eager layer takes its softmax in float32, the fused one in the inputs' float64, but shows no weights.
    with absorbing(lean):
        weights = results(lean, query, key, value)[1], results(plain, query, key, value)[1]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-5)
    plain, lean = attention_pair(implementation="sdpa")
    with absorbing(lean):
        output, _, inputs, parameters = results(lean, query, key, value)
    expected = results(plain, query, key, value)
    torch.testing.assert_close((output, inputs, parameters), (expected[0], *expected[2:]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [(2, 40), (40, 2)])
def test_the_longer_side_is_not_projected(lengths, monkeypatch):
    projected = []
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: projected.append(x.shape[2]) or x @ self.weight.T)
    _, lean = attention_pair()
    query, key = (torch.randn(1, 1, length, HIDDEN, dtype=torch.float64) for length in lengths)
    with absorbing(lean):
        lean(query, key, key)
    assert set(projected) == {2}


def test_similarity_is_added_to_the_scores_as_in_plain_attention():
    plain, lean = attention_pair()
    query, key = (torch.randn(1, 1, length, HIDDEN, dtype=torch.float64) for length in (2, 40))
    similarity = torch.randn(1, 1, 2, 40, dtype=torch.float64)
    expected = results(plain, query, key, key, attention_similarity=similarity)
    with absorbing(lean):
        torch.testing.assert_close(results(lean, query, key, key, attention_similarity=similarity), expected)
    assert not torch.allclose(expected[0], results(plain, query, key, key)[0])


def flops(layer, queries, keys, hidden):
    query, key = torch.randn(1, 1, queries, hidden).double(), torch.randn(1, 1, keys, hidden).double()
    with FlopCounterMode(display=False) as counter:
        layer(query, key, key)
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [1, 4, 7, 11, 15, 16, 17, 18, 19, 24])
def test_the_rule_chooses_the_layer_with_fewer_counted_products(tokens, monkeypatch):
    places, hidden, heads = 256, 256, 8
    plain, lean = attention_pair(hidden, heads)
    rule = absorbing_is_cheaper(tokens, places, hidden, hidden // 2, heads)
    monkeypatch.setattr("samparser.sam.absorbed_attention.absorbing_is_cheaper", lambda *_: True)
    for lengths in ((tokens, places), (places, tokens)):
        shifts = 2 * tokens * hidden // 2  # of the absorbed bias, which the rule leaves out
        with absorbing(lean):
            counted = flops(lean, *lengths, hidden) - shifts, flops(plain, *lengths, hidden)
        assert (counted[0] < counted[1]) == rule


def test_only_plain_attention_is_recognised():
    plain, lean = attention_pair()
    assert is_plain_attention(plain)
    with absorbing(lean):
        assert is_plain_attention(lean)
    lean.__class__ = type("Other", (SamAttention,), {})
    assert not is_plain_attention(lean)
    assert not is_plain_attention(plain.q_proj)
    plain.v_proj = torch.nn.Sequential(plain.v_proj)
    assert not is_plain_attention(plain)


@pytest.mark.parametrize(
    ("family", "name"),
    [("sam_hq", "SamHQ"), ("sam2", "Sam2"), ("edgetam", "EdgeTam"), ("sam3_tracker", "Sam3Tracker")],
)
@pytest.mark.parametrize("lengths", [(2, 40), (40, 2)])
def test_the_attention_of_every_family_absorbs_alike(family, name, lengths):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = getattr(module, f"{name}MaskDecoderConfig")(hidden_size=HIDDEN, num_attention_heads=HEADS)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    plain = getattr(module, f"{name}Attention")(config).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    lean = copy.deepcopy(plain)
    assert is_plain_attention(plain)
    query, key = (torch.randn(2, 3, length, HIDDEN, dtype=torch.float64) for length in lengths)
    expected = results(plain, query, key, key)
    with switched([(lean, absorbed_attention_class(type(lean)))]), FlopCounterMode(display=False) as counter:
        output, _, inputs, parameters = results(lean, query, key, key)
    torch.testing.assert_close((output, inputs, parameters), (expected[0], *expected[2:]), rtol=1e-9, atol=1e-9)
    with FlopCounterMode(display=False) as usual:
        results(plain, query, key, key)
    assert counter.get_total_flops() != usual.get_total_flops()
