"""What torch does to modules: copy, pickle, cast, move, export, average, checkpoint, distribute."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.save_and_load import get_base_model_state_dict, set_base_model_state_dict
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from samparser import SVDCoefficientConfig
from tests.tuner.models import (
    INPUTS,
    OLD_TORCH,
    TARGETS,
    batch,
    layers,
    make,
    move,
    output,
    train,
    trained_names,
    with_adapters,
)

CHOICES = [{}, {"parametrization": "relative"}, {"trainable": "both"}]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_copies_and_pickles_are_models_of_their_own(kind, choices):
    model, x = with_adapters(kind, "a", "b", **choices), batch(kind)
    before = output(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(twin, x), before)
        train(twin, x)
        assert not torch.equal(output(twin, x), before)
        assert torch.equal(output(model, x), before)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_state_dict_round_trip_carries_base_model_and_adapter(kind):
    model, x = with_adapters(kind, "a", "b"), batch(kind)
    tensors = model.state_dict()
    assert not any("bases" in name or ".p0" in name for name in tensors)
    other = get_peft_model(make(kind, seed=9), SVDCoefficientConfig(target_modules=TARGETS[kind]), "a")
    other.add_adapter("b", SVDCoefficientConfig(target_modules=TARGETS[kind]))
    other.load_state_dict(tensors)
    for name in ("a", "b"):
        for net in (model, other):
            net.set_adapter(name)
        assert torch.equal(output(other, x), output(model, x))


def test_an_adapter_keeps_its_change_when_only_the_base_weights_are_loaded():
    model = with_adapters("MLP", "a")
    change = [layer.spectrum("a")[1] - layer.spectrum("a")[0] for layer in layers(model)]
    set_base_model_state_dict(model, make("MLP", seed=9).state_dict())
    for layer, before in zip(layers(model), change, strict=True):
        p0, p = layer.spectrum("a")
        torch.testing.assert_close(p - p0, before)
        torch.testing.assert_close(layer.bases.p, torch.linalg.svdvals(layer.base_weight))


def test_an_untrained_adapter_starts_at_the_base_weights_that_were_loaded(tmp_path):
    model, x = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"])), batch("MLP")
    set_base_model_state_dict(model, make("MLP", seed=9).state_dict())
    assert torch.equal(output(model, x), output(make("MLP", seed=9), x))
    # And it remembers these when it is saved.
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(make("MLP", seed=9), tmp_path), x), output(model, x))


def test_the_base_model_comes_out_with_its_own_names():
    base = get_base_model_state_dict(with_adapters("ConvNet", "a"))
    twin = make("ConvNet").state_dict()
    assert base.keys() == twin.keys()
    assert all(torch.equal(base[name], twin[name]) for name in twin)


def test_a_model_made_without_values_gets_its_bases_when_it_has_them(tmp_path):
    trained, x = with_adapters("ConvNet", "default"), batch("ConvNet")
    trained.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = make("ConvNet")
    model = get_peft_model(empty, SVDCoefficientConfig(target_modules=TARGETS["ConvNet"]))
    assert model.get_nb_trainable_parameters() == trained.get_nb_trainable_parameters()
    assert model(torch.empty(1, 3, 9, 8, device="meta")).shape == (1, 2)
    model.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(output(model, x), output(trained, x))


def test_an_adapter_loaded_before_the_base_weights_is_compared_with_them_later(tmp_path):
    with_adapters("MLP", "default").save_pretrained(tmp_path)
    for seed, fits in ((0, True), (9, False)):
        with torch.device("meta"):
            empty = make("MLP")
        model = PeftModel.from_pretrained(empty, tmp_path, low_cpu_mem_usage=True)
        weights = {f"base_model.model.{name}": p for name, p in make("MLP", seed=seed).state_dict().items()}
        for name in ("lin0", "lin1"):
            for kind in ("weight", "bias"):
                if f"base_model.model.{name}.{kind}" in weights:
                    weights[f"base_model.model.{name}.base_layer.{kind}"] = weights.pop(
                        f"base_model.model.{name}.{kind}"
                    )
        model.load_state_dict(weights, strict=False, assign=True)
        if fits:
            expected = PeftModel.from_pretrained(make("MLP"), tmp_path)
            assert torch.equal(output(model, batch("MLP")), output(expected, batch("MLP")))
        else:
            with pytest.raises(ValueError, match="lin0: this base weight is not the one"):
                output(model, batch("MLP"))


def test_coefficients_without_values_are_reported():
    with torch.device("meta"):
        empty = make("MLP")
    model = get_peft_model(empty, SVDCoefficientConfig(target_modules=["lin0"]))
    model.base_model.model.lin0.base_layer.load_state_dict(make("MLP").lin0.state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"lin0: .*svd_coefficient_p of adapter 'default' is still on"):
        model.base_model.model.lin0(batch("MLP"))


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_cast_model_keeps_coefficients_and_bases_in_float32(cast, choices):
    model = with_adapters("ConvNet", "a", **choices)
    before = {name: p.clone() for name, p in model.named_parameters() if "svd_coefficient" in name}
    getattr(model, cast)()
    for name, tensor in before.items():
        assert model.get_parameter(name).dtype == torch.float32
        assert torch.equal(model.get_parameter(name), tensor)
    layer = layers(model)[0]
    assert {layer.bases.u.dtype, layer.bases.p.dtype, layer.bases.vh.dtype} == {torch.float32}
    x = batch("ConvNet").to(layer.base_weight.dtype)
    assert output(model, x).dtype == x.dtype
    train(model, x)
    assert output(model, x).isfinite().all()


def test_a_model_made_double_computes_in_double():
    model, x = with_adapters("MLP", "a"), batch("MLP")
    before = output(model, x)
    model.double()
    assert output(model, x.double()).dtype == torch.float64
    torch.testing.assert_close(output(model, x.double()).float(), before, rtol=1e-4, atol=1e-5)


def test_adapters_are_rounded_only_where_peft_is_told_to():
    for autocast, expected in ((True, torch.float32), (False, torch.bfloat16)):
        config = SVDCoefficientConfig(target_modules=["lin0"])
        model = get_peft_model(make("MLP").bfloat16(), config, autocast_adapter_dtype=autocast)
        assert layers(model)[0].svd_coefficient_p["default"].dtype == expected
        assert output(model, batch("MLP").bfloat16()).dtype == torch.bfloat16


def test_a_merged_model_that_is_cast_unmerges_to_the_cast_base():
    model = with_adapters("MLP", "a")
    model.merge_adapter()
    model.bfloat16()
    model.unmerge_adapter()
    assert torch.equal(layers(model)[0].base_weight, make("MLP").bfloat16().lin0.weight)


def test_moving_to_a_device_takes_bases_and_origins_along():
    model = with_adapters("MLP", "a").to("meta")
    (layer, *_) = layers(model)
    assert layer.svd_coefficient_p["a"].is_meta
    assert not layer.bases.is_meta  # Nothing is lost that a state dict does not hold.


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", INPUTS)
def test_a_model_on_the_gpu_gives_what_it_gave_on_the_cpu(kind, tmp_path):
    model, x = with_adapters(kind, "a", "b"), batch(kind)
    expected = output(model, x)
    model.to("cuda")
    for layer in layers(model):
        assert layer.bases.u.is_cuda
        assert all(state.origin.is_cuda for state in layer.states.values())
    torch.testing.assert_close(output(model, x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    train(model, x.cuda())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(kind).to("cuda"), tmp_path / "a")
    torch.testing.assert_close(output(loaded, x.cuda()), output(model, x.cuda()), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(OLD_TORCH, reason="torch 2.6 cannot export the context manager in PeftModel.forward; 2.7 can")
def test_an_exported_model_computes_the_same():
    model, x = with_adapters("ConvNet", "a"), batch("ConvNet")
    expected = output(model, x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=1e-4, atol=1e-5)
    plain = model.merge_and_unload()
    torch.testing.assert_close(torch.export.export(plain, (x,)).module()(x), expected, rtol=1e-4, atol=1e-5)


def test_moving_averages_of_a_model_average_its_coefficients():
    model, x = with_adapters("MLP", "a"), batch("MLP")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    assert torch.equal(output(average, x), output(model, x))
    before = layers(model)[0].svd_coefficient_p["a"].detach().clone()
    train(model, x)
    after = layers(model)[0].svd_coefficient_p["a"]
    average.update_parameters(model)
    mean = layers(average)[0].svd_coefficient_p["a"]
    torch.testing.assert_close(mean, (before + after) / 2)
    with torch.no_grad():
        for theirs, ours in zip(model.parameters(), average.module.parameters(), strict=True):
            theirs.data.copy_(ours.data)
    assert torch.equal(output(model, x), output(average, x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, x = with_adapters("ConvNet", "a"), batch("ConvNet").requires_grad_()
    model.train()
    model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    assert expected.keys() == trained_names(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_a_sam_with_gradient_checkpointing_trains(tiny_sam):
    x = {"pixel_values": torch.randn(1, 3, 64, 64), "input_boxes": torch.tensor([[[5.0, 5, 40, 40]]])}
    gradients = []
    for switch in (False, True):
        model = get_peft_model(copy.deepcopy(tiny_sam), SVDCoefficientConfig(target_modules=["qkv", "neck"]))
        if switch:
            model.base_model.model.gradient_checkpointing_enable()
        model.train()
        model(**x, multimask_output=False).pred_masks.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# Several processes


def data_parallel_worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    model = with_adapters("ConvNet", "a")
    buffers = len(list(model.buffers()))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = batch("ConvNet")[2 * rank : 2 * rank + 2]
    for _ in range(2):
        optimizer.zero_grad()
        parallel(x).square().mean().backward()
        optimizer.step()
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    torch.save({"buffers": buffers, "trained": trained}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def sharded_worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    sharded = with_adapters("ConvNet", "a")
    before = output(sharded, batch("ConvNet"))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        difference = (sharded(batch("ConvNet")) - before).abs().max().item()
    tensors = get_peft_model_state_dict(sharded, adapter_name="a")
    saved = {name: t.full_tensor() for name, t in tensors.items()}
    # Loaded again, and then with base weights that are other ones, from which the same coefficients count.
    set_model_state_dict(sharded, get_model_state_dict(sharded))
    other = with_adapters("ConvNet", "a")
    with torch.no_grad():
        for layer in layers(other):
            layer.base_layer.weight.mul_(2)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(sharded, other.state_dict(), options=options)
    other.load_state_dict(other.state_dict())
    with torch.no_grad():
        followed = (sharded(batch("ConvNet")) - output(other, batch("ConvNet"))).abs().max().item()
    results = {"difference": difference, "saved": saved, "followed": followed}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(worker, folder: Path) -> list[dict]:
    # Not forked: what other tests left of threads here may hold a lock that a fork would never see released.
    mp.start_processes(worker, args=(folder,), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_train_as_one(tmp_path):
    model, x = with_adapters("ConvNet", "a"), batch("ConvNet")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for result in in_two_processes(data_parallel_worker, tmp_path):
        assert result["buffers"] == 0  # DistributedDataParallel would send them around in every step.
        for name, parameter in result["trained"].items():
            torch.testing.assert_close(parameter, model.get_parameter(name).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(OLD_TORCH, reason="torch 2.6 shards on accelerators only: its CPU streams have no record_event")
def test_a_sharded_model_computes_saves_whole_coefficients_and_loads_them(tmp_path):
    whole = get_peft_model_state_dict(with_adapters("ConvNet", "a"), adapter_name="a")
    for result in in_two_processes(sharded_worker, tmp_path):
        assert result["difference"] < 1e-5
        assert result["followed"] < 1e-5
        assert result["saved"].keys() == whole.keys()
        assert all(torch.equal(result["saved"][name], whole[name]) for name in whole)


def test_a_model_in_one_fsdp_unit_gives_the_adapters_tensors():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, x = with_adapters("MLP", "default"), batch("MLP")
        expected, tensors = output(model, x), get_peft_model_state_dict(model)
        tensors = {name: t.clone() for name, t in tensors.items()}
        sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        torch.testing.assert_close(output(sharded, x), expected)
        saved = get_peft_model_state_dict(sharded)
        assert saved.keys() == tensors.keys()
        assert all(torch.equal(saved[name], tensors[name]) for name in tensors)
    finally:
        dist.destroy_process_group()


def test_requires_grad_of_the_base_is_left_to_the_user():
    model, x = with_adapters("MLP", "a"), batch("MLP")
    weight = layers(model)[0].base_layer.weight
    weight.requires_grad_(True)
    train(model, x)
    assert weight.grad is not None
    nn.Module.requires_grad_(model, False)
    assert trained_names(model) == set()


@pytest.mark.parametrize("kind", ["MLP", "ConvNet"])
def test_what_is_wrapped_in_inference_mode_trains_as_what_is_wrapped_outside_of_it(kind):
    x, losses = batch(kind), []
    for inside in (True, False):
        base = make(kind)
        with torch.inference_mode(inside):
            model = get_peft_model(base, SVDCoefficientConfig(target_modules=TARGETS[kind]))
        model.train()
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]
    assert losses[0] > losses[2]
