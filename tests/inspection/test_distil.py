"""The coefficients and pairs nearest to what full tuning changed."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from samparser.inspection import distil, layer_moves
from samparser.methods import load_model, merged, save_trained
from samparser.tuner import SVDCoefficientLayer, coefficients, expansion_terms
from tests.conftest import make_tiny_sam

from .conftest import NECK, tuned


def fully_tuned(*parts, seed=4, size=0.02):
    """A tiny SAM whose tensors below these parts have moved by noise."""
    model, generator = make_tiny_sam(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(parts):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_a_merged_adapter_gives_back_its_numbers_and_is_explained_in_full():
    adapter = tuned(expansion="pairs")
    found = distil(make_tiny_sam(), merged(adapter), rank=6)
    assert found.share == pytest.approx(1, abs=1e-6)
    assert [layer.share for layer in found.layers] == pytest.approx([1, 1], abs=1e-6)
    assert found.parts == ()
    assert found.share_of_everything == pytest.approx(1, abs=1e-6)
    before, after = coefficients(adapter), coefficients(found.model)
    for name, (_, p) in before.items():
        torch.testing.assert_close(after[name][1], p, rtol=0, atol=2e-6)
    terms, again = expansion_terms(adapter), expansion_terms(found.model)
    for name, one in terms.items():
        pairs = {tuple(pair): float(c) for pair, c in zip(one.pairs.tolist(), one.change, strict=True)}
        theirs = {tuple(p): float(c) for p, c in zip(again[name].pairs.tolist(), again[name].change, strict=True)}
        assert theirs == pytest.approx(pairs, abs=2e-6)


@torch.no_grad()
def test_the_numbers_are_the_best_in_least_squares():
    base, target = make_tiny_sam(), fully_tuned("vision_encoder.neck")
    found = distil(make_tiny_sam(), target, rank=5)
    for row in found.layers:
        start, change = base.get_submodule(row.layer).weight, target.get_submodule(row.layer).weight
        change = (change - start).flatten(1).double()
        u, p, vh = torch.linalg.svd(start.flatten(1).double(), full_matrices=False)
        # All directions that the adapter may use as columns, and the pairs that an exhaustive search takes.
        along = (u.T @ change @ vh.T).square()
        diagonal = float(along.diagonal().sum())
        along.fill_diagonal_(0)
        best = diagonal + float(along.flatten().sort(descending=True).values[:5].sum())
        whole = float(change.square().sum())
        assert row.share == pytest.approx(best / whole, rel=1e-3)
        assert row.by_coefficients == pytest.approx(diagonal / whole, rel=1e-3)
        assert (row.coefficients, row.pairs) == (len(p), 5)
        assert row.change == pytest.approx(whole**0.5, rel=1e-5)


@torch.no_grad()
def test_more_pairs_explain_more_up_to_all_of_the_bases_span():
    target = fully_tuned("vision_encoder.neck.conv2")
    shares = [distil(make_tiny_sam(), target, rank=rank).share for rank in (0, 8, 64, 10**6)]
    assert shares == sorted(shares)
    weight, start = target.vision_encoder.neck.conv2.weight, make_tiny_sam().vision_encoder.neck.conv2.weight
    change, vh = (weight - start).flatten(1), torch.linalg.svd(start.flatten(1), full_matrices=False)[2]
    spanned = float((change @ vh.T).square().sum() / change.square().sum())
    assert shares[-1] == pytest.approx(spanned, rel=1e-4)


def test_what_else_changed_is_told_and_can_be_kept(tmp_path):
    target = fully_tuned("vision_encoder.neck", "mask_decoder", "vision_encoder.pos_embed")
    left = distil(make_tiny_sam(), target)
    parts = {part.part: part for part in left.parts}
    assert set(parts) == {"mask_decoder", "vision_encoder.neck", "vision_encoder.pos_embed"}
    decoder = sum(p.numel() for p in target.mask_decoder.parameters())
    assert (parts["mask_decoder"].numbers, parts["mask_decoder"].kept) == (decoder, False)
    assert "mask_decoder: changed by" in str(left)
    assert "not in the adapter" in str(left)
    # The norms of the neck are no layers that are adapted.
    norms = [p for name, p in target.vision_encoder.neck.named_parameters() if "layer_norm" in name]
    assert parts["vision_encoder.neck"].numbers == sum(map(torch.Tensor.numel, norms))

    kept = distil(make_tiny_sam(), target, keep=["mask_decoder"])
    assert {part.part for part in kept.parts if part.kept} == {"mask_decoder"}
    assert kept.share == pytest.approx(left.share)
    assert kept.share_of_everything > left.share_of_everything
    save_trained(kept.model, tmp_path / "kept")
    plain = merged(kept.model)
    for name, tensor in target.mask_decoder.state_dict().items():
        assert torch.equal(plain.mask_decoder.state_dict()[name], tensor)


@torch.no_grad()
def test_a_saved_distilled_adapter_changes_the_base_as_it_was_told(tmp_path, tiny_sam_folder):
    base, _ = load_model(tiny_sam_folder)
    target = fully_tuned("vision_encoder.neck")
    found = distil(base, target, rank=3)
    save_trained(found.model, tmp_path / "distilled")
    loaded, _ = load_model(tmp_path / "distilled")
    for module, row in zip(
        (one for one in loaded.modules() if isinstance(one, SVDCoefficientLayer)), found.layers, strict=True
    ):
        rest = target.get_submodule(module.layer_name).weight - module.weight
        assert float(rest.norm()) == pytest.approx(row.rest, rel=1e-4)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_attention_layers_are_found_and_names_are_taken_as_they_are():
    target = fully_tuned("vision_encoder.layers")
    found = distil(make_tiny_sam(), target, layers=["attention"], rank=2)
    assert [row.layer for row in found.layers] == [
        f"vision_encoder.layers.{i}.attn.{part}" for i in (0, 1) for part in ("qkv", "proj")
    ]
    one = distil(make_tiny_sam(), target, layers=["vision_encoder.layers.1.mlp.lin1"], rank=0)
    assert [(row.layer, row.pairs) for row in one.layers] == [("vision_encoder.layers.1.mlp.lin1", 0)]
    assert [move.terms for move in layer_moves(one.model)] == [0]


def test_equal_singular_values_move_together_and_are_in_no_pair():
    base, target = make_tiny_sam(), make_tiny_sam()
    with torch.no_grad():
        for model in (base, target):
            matrix = model.vision_encoder.neck.conv1.weight.flatten(1)  # (32, 24), the same memory
            matrix[:3], matrix[:, :5] = 0, 0  # Columns 0 and 1 stay so: two singular values of zero.
            matrix[:3, 2:5] = 3 * torch.eye(3)  # Three equal ones, the largest.
        weight = target.vision_encoder.neck.conv1.weight
        weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    found = distil(base, target, layers=[NECK[0]], rank=10**6)
    p0, after = coefficients(found.model)[NECK[0]]
    assert p0[:3].tolist() == [3.0] * 3
    moved = after - p0
    assert len(set(moved[:3].tolist())) == 1
    assert moved[-2:].tolist() == [0, 0]
    assert bool((moved[:-2] != 0).all())
    (row,) = found.layers
    assert row.by_coefficients == pytest.approx(float(moved.double().square().sum()) / row.change**2, rel=1e-4)
    in_pairs = set(expansion_terms(found.model)[NECK[0]].pairs.flatten().tolist())
    assert in_pairs == set(range(3, len(p0) - 2))


def test_models_that_cannot_be_compared_are_refused_before_anything_changes():
    base = make_tiny_sam()
    with pytest.raises(ValueError, match="The two models have the same weights"):
        distil(base, make_tiny_sam())
    with pytest.raises(ValueError, match=r"Tuning changed nothing in .*neck\.conv1.*; it changed mask_decoder\. Name"):
        distil(base, fully_tuned("mask_decoder"))
    with pytest.raises(ValueError, match=r"The models have different weights .*vision_encoder\.layers\.2"):
        distil(base, make_tiny_sam(num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"has shape \(.*\) in the base and \(.*\) in the tuned"):
        distil(base, make_tiny_sam(mlp_dim=40))
    broken = fully_tuned("vision_encoder.neck")
    broken.vision_encoder.neck.conv1.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"neck\.conv1\.weight of the tuned model holds values that are not finite"):
        distil(base, broken)
    with pytest.raises(ValueError, match="rank is -1; it must be at least 0"):
        distil(base, fully_tuned("vision_encoder.neck"), rank=-1)
    with pytest.raises(ValueError, match="layers is empty"):
        distil(base, fully_tuned("vision_encoder.neck"), layers=[])
    assert not any(isinstance(module, SVDCoefficientLayer) for module in base.modules())
    with pytest.raises(ValueError, match="already carries"):
        distil(tuned(), fully_tuned("vision_encoder.neck"))


class Mixed(nn.Module):
    """A layer of every kind that can be adapted, in a model that is no SAM."""

    def __init__(self):
        super().__init__()
        self.linear, self.stored_across = nn.Linear(6, 5), Conv1D(4, 5)
        self.grouped, self.transposed = nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2, stride=2)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Few coefficients")
def test_layers_of_every_kind_in_any_model_are_distilled_to_all_that_their_bases_span():
    torch.manual_seed(0)
    base, target = Mixed(), Mixed()
    target.load_state_dict(base.state_dict())
    names = ["linear", "stored_across", "grouped", "transposed"]
    for name in names:
        weight = target.get_submodule(name).weight
        weight.add_(0.1 * torch.randn(weight.shape))
    original = {name: base.get_submodule(name).weight.clone() for name in names}
    found = distil(base, target, layers=names, rank=10**6)
    assert {row.layer for row in found.layers} == set(names)
    for row in found.layers:
        start, end = original[row.layer], target.get_submodule(row.layer).weight
        matrices = [one.T if row.layer == "stored_across" else one.flatten(1) for one in (start, end)]
        u, _, vh = torch.linalg.svd(matrices[0].double(), full_matrices=False)
        change = (matrices[1] - matrices[0]).double()
        spanned = u @ u.T @ change @ vh.T @ vh
        assert row.share == pytest.approx(1 - float(((change - spanned).norm() / change.norm()) ** 2), abs=1e-5)
        layer = found.model.get_base_model().get_submodule(row.layer)
        assert float((end - layer.weight).norm()) == pytest.approx(row.rest, abs=1e-5)
