"""A checkpoint in half precision through the command line: trained in float32, scored and merged afterwards."""

import json

import pytest
import torch
from safetensors.torch import load_file

from samparser.cli import main
from tests.conftest import make_tiny_sam


@pytest.mark.parametrize(
    ("method", "merged_dtype"),
    # What was trained as whole tensors beside hashes of the base needs that base in float32, and so stays in it.
    [("samparser", torch.bfloat16), ("decoder", torch.float32)],
)
def test_it_is_trained_in_float32_and_used_again(method, merged_dtype, tiny_processor, toy_coco, tmp_path):
    def run(*words):
        assert main([str(word) for word in words]) == 0

    model, output, merged = tmp_path / "half", tmp_path / "run", tmp_path / "merged"
    make_tiny_sam().bfloat16().save_pretrained(model)
    tiny_processor.save_pretrained(model)
    training = ("--method", method, "--max_steps", 1, "--report_to", "none", "--jitter_max", 2)
    run("train", "--model", model, "--data", toy_coco, "--output_dir", output, *training)
    saved = [load_file(path) for path in (output / "adapter").glob("*.safetensors")]
    assert {tensor.dtype for tensors in saved for tensor in tensors.values()} == {torch.float32}

    run("evaluate", output / "adapter", "--data", toy_coco, "--output", tmp_path / "scores")
    in_run, again = (
        json.loads((folder / "scores.json").read_text())["scores"]["instance_image_mean"]["miou"]
        for folder in (output, tmp_path / "scores")
    )
    assert again == pytest.approx(in_run, abs=0.02)

    run("merge", output / "adapter", merged)
    assert {tensor.dtype for tensor in load_file(merged / "model.safetensors").values()} == {merged_dtype}
