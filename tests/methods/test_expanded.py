"""Methods with an expansion, and those of the attention layers: what they train, and which options they refuse."""

import pytest

from samparser.methods import build, describe


def trained(model):
    return describe(model).trained


def test_terms_count_before_they_are_chosen(tiny_sam):
    assert trained(build("expansion", tiny_sam, rank=5)) == {"neck": 2 * 5}


def test_blocks_and_neck_choose_the_layers(tiny_sam):
    # One block of the tiny SAM: qkv and proj, 24 coefficients each; the neck: 24 and 32.
    model = build("attention", tiny_sam, blocks=1, neck=True, expansion="pairs", expansion_rank=3)
    assert trained(model) == {"transformer layers": 2 * (24 + 3), "neck": 24 + 32 + 2 * 3}
    assert all("layers.1." in name or ".neck." in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("expansion", {"kind": "pair"}, "There is no expansion 'pair': give pairs, gradient or random"),
        ("samparser", {"expansion": "mixed"}, "There is no expansion 'mixed': give pairs, gradient or random"),
        ("expansion", {"kind": None}, "trainable='expansion' is about the terms of an expansion, but there is none"),
        ("expansion", {"dtype": "bf16"}, "expansion_dtype='bf16' is not possible; choose one of 'float32', 'float16'"),
        ("expansion", {"rank": 0}, "expansion_rank=0 has to be a whole number of at least 1"),
        ("samparser", {"expansion_rank": 4}, "There is no expansion to have 4 terms: give pairs, gradient or random"),
        ("attention", {"blocks": 3}, "blocks=3 must be a whole number from 1 to 2, the attention layers of this model"),
        ("attention", {"blocks": "x"}, "blocks='x' must be a whole number from 1 to 2"),
        ("attention", {"coefficients": False}, "Without coefficients and without an expansion nothing trains"),
        ("attention", {"coefficients": False, "expansion": "pairs", "top": 0.5}, "top=0.5 says how many coefficients"),
    ],
)
def test_options_that_ask_for_nothing_possible_are_named(tiny_sam, method, options, message):
    with pytest.raises(ValueError, match=message):
        build(method, tiny_sam, **options)
