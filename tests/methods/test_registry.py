from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from samparser.methods import METHODS, build, describe, load_trained, merged, method, save_trained
from samparser.methods.registry import applied_method
from tests.conftest import make_tiny_sam

from .conftest import masks, train_a_little


@pytest.fixture
def norm_method():
    """A method of a user's own: one function."""

    @method("norms", summary="the norms of the neck", trains_upstream=False)
    def norms(model: nn.Module, second: bool = True) -> nn.Module:
        model.get_submodule("vision_encoder.neck.layer_norm1").requires_grad_(True)
        model.get_submodule("vision_encoder.neck.layer_norm2").requires_grad_(second)
        return model

    yield norms
    del METHODS["norms"]


def test_a_method_is_added_by_one_function(norm_method, tmp_path, tiny_inputs):
    model = build("norms", make_tiny_sam(), second=False)
    assert describe(model).trained == {"neck": 64}
    train_a_little(model, tiny_inputs)
    save_trained(model, tmp_path / "norms")
    loaded = load_trained(make_tiny_sam(), tmp_path / "norms")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert torch.equal(masks(merged(loaded), tiny_inputs), masks(model, tiny_inputs))


def test_buffers_that_a_method_adds_are_saved_too(tmp_path):
    @method("counter", summary="a buffer", trains_upstream=False)
    def counter(model: nn.Module) -> nn.Module:
        model.mask_decoder.register_buffer("seen", torch.zeros(3))
        return model

    try:
        model = build("counter", make_tiny_sam())
        model.mask_decoder.seen += 5
        save_trained(model, tmp_path / "counter")
        assert load_trained(make_tiny_sam(), tmp_path / "counter").mask_decoder.seen.tolist() == [5, 5, 5]
    finally:
        del METHODS["counter"]


def test_a_name_is_given_once(norm_method):
    with pytest.raises(ValueError, match=r"There is a method 'norms' already \(the norms of the neck\)"):
        method("norms", summary="again", trains_upstream=False)(lambda model: model)


def test_options_need_defaults_and_names():
    with pytest.raises(TypeError, match="Option 'rank' of method 'broken' has no default"):

        @method("broken", summary="", trains_upstream=False)
        def without_default(model, rank): ...

    with pytest.raises(TypeError, match=r"Option '\*\*options' of method 'broken' has no default"):

        @method("broken", summary="", trains_upstream=False)
        def swallowing(model, **options): ...

    assert "broken" not in METHODS


def test_an_unknown_method_is_refused_with_the_list_of_known_ones(tiny_sam):
    with pytest.raises(ValueError, match=r"no method 'loraa'\. Did you mean 'lora'\? .* are: .*lora.*samparser"):
        build("loraa", tiny_sam)


def test_an_unknown_option_is_refused_with_the_known_ones_and_changes_nothing(tiny_sam):
    with pytest.raises(TypeError, match=r"'lora' has no option 'r'\. Its options are \{'rank': 4"):
        build("lora", tiny_sam, r=4)
    with pytest.raises(TypeError, match=r"'decoder' has no option 'rank'\. It has no options"):
        build("decoder", tiny_sam, rank=4)
    assert all(parameter.requires_grad for parameter in tiny_sam.parameters())


def test_options_that_json_cannot_hold_are_refused(tiny_sam):
    with pytest.raises(TypeError, match="options of method 'lora' must be values that JSON can hold"):
        build("lora", tiny_sam, alpha=torch.ones(1))


def test_a_build_that_fails_leaves_what_trained_as_it_was(tiny_sam):
    tiny_sam.vision_encoder.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in tiny_sam.named_parameters()}
    with pytest.raises(ValueError, match="rank of LoRA is -1"):
        build("lora", tiny_sam, rank=-1)
    assert {name: parameter.requires_grad for name, parameter in tiny_sam.named_parameters()} == before
    assert applied_method(tiny_sam) is None


def test_a_second_method_on_the_same_model_is_refused(tiny_sam):
    model = build("decoder", tiny_sam)
    with pytest.raises(ValueError, match="already carries method 'decoder'; method 'lora' needs a base model"):
        build("lora", model)


def test_a_method_on_a_peft_model_is_refused(tiny_sam):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ValueError, match=r"already carries PEFT adapters \('default'\)"):
        build("decoder", model)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_of_no_family_is_refused_by_name(name):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=rf"Method {name!r} needs a SamModel.*got a Sequential".replace("+", r"\+")):
        build(name, model)


@pytest.mark.parametrize("name", METHODS)
def test_what_the_tuner_alone_works_on_is_refused_with_what_can_be_done(name):
    class Sam3Model(nn.Module):
        config = SimpleNamespace(model_type="sam3")

    with pytest.raises(TypeError, match=r"got a Sam3Model\. Its boxes are exemplars.*The tuner itself works on it"):
        build(name, Sam3Model())


def test_a_model_without_the_part_is_refused_by_what_it_lacks(tiny_sam):
    del tiny_sam.mask_decoder
    with pytest.raises(TypeError, match=r"This SamModel has no mask_decoder; its parts are shared_image_embedding"):
        build("decoder", tiny_sam)


def test_a_model_with_another_attention_is_refused_by_what_it_has(tiny_sam):
    tiny_sam.vision_encoder.layers[1].attn.qkv = nn.Linear(24, 24)
    with pytest.raises(
        TypeError, match=r"layers\.1\.attn\.qkv is Linear\(in_features=24, out_features=24.*at least 72"
    ):
        build("lora", tiny_sam)


def test_the_model_keeps_all_options_with_their_defaults(tiny_sam):
    applied = applied_method(build("lora", tiny_sam, rank=2))
    assert applied is not None
    assert (applied.name, applied.options) == ("lora", {"rank": 2, "alpha": None, "decoder": True})
