import pytest
import torch
from safetensors.torch import save_file

from samparser.methods import build, describe, save_trained
from samparser.methods.cost import meta_model
from samparser.methods.description import safetensors_bytes
from tests.conftest import make_tiny_sam

from .conftest import TRAINING, choose_terms


@pytest.mark.parametrize("name", TRAINING)
def test_the_bytes_are_those_of_the_file_that_is_written(name, tmp_path, tiny_inputs):
    model = build(name, make_tiny_sam())
    before = describe(model)
    choose_terms(model, tiny_inputs)
    assert describe(model) == before  # terms that are yet to be chosen count
    save_trained(model, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert describe(model).bytes_on_disk == file.stat().st_size


def test_the_size_of_a_safetensors_file_of_mixed_dtypes_is_exact(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = {f"größe.{i}": torch.ones(2 * i + 1, 3).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors["scalar"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "file.safetensors", metadata={"format": "pt"})
    assert safetensors_bytes(tensors) == (tmp_path / "file.safetensors").stat().st_size


def test_parameters_are_counted_by_the_part_of_the_model_they_sit_in():
    assert describe(build("full", meta_model())).trained == {
        "patch and position embedding": 3_736_320,
        "transformer layers": 85_147_136,
        "neck": 787_456,
        "prompt encoder": 6_220,
        "mask decoder": 4_058_340,
    }
    assert describe(build("samparser", meta_model())).trained == {"neck": 512, "mask decoder": 4_058_340}


def test_the_adapter_of_coefficients_alone_takes_a_few_kilobytes():
    assert describe(build("samparser-coefficients", meta_model())).bytes_on_disk < 5_000


def test_it_reads_as_a_sentence():
    assert str(describe(build("decoder", meta_model()))).startswith(
        "decoder: 4,058,340 parameters trained (4,058,340 in the mask decoder), 16,2"
    )
    assert str(describe(build("zero-shot", meta_model()))) == "zero-shot: 0 parameters trained (none), 0 bytes on disk"


def test_a_plain_model_has_no_method_and_nothing_to_save(tiny_sam):
    description = describe(tiny_sam)
    assert (description.method, description.bytes_on_disk) == (None, 0)
