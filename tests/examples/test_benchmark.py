import pytest
import torch

from .test_examples import EXAMPLES, run_example


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda *arguments: run_example("benchmark.py", monkeypatch, "--quick", "--threads", 1, *arguments)


def test_the_benchmark_compares_layers_steps_and_adapters(benchmark, tmp_path, capsys):
    parts = ("families", "layers", "transposed", "steps", "batches", "lean", "many")
    benchmark("--rounds", 1, "--step_rounds", 1, "--only", *parts, "--output", tmp_path / "out.md")
    printed = capsys.readouterr().out
    assert (tmp_path / "out.md").read_text() == printed
    assert printed.startswith("Measured on ")
    lines = printed.splitlines()
    for start in (
        "| conv1 48->16, 1x1 |",
        "| smaller: 6->3, 8x8 |",
        "| samparser + decoder |",
        "| sam-vit-base | 482.82 | 3.22 | 1.81 | 1.81 | 1/97 | 12.1, 1/41 | 6.3 MB |",
        "| 64 | 1 box each | 1 |",
        "| 64 | unequal numbers | 2 |",
        "| tiny | 10 |",
        "| LoRA r=4 on qkv + decoder |",
        "| 2 |",
        "| 3 |",
    ):
        assert [line for line in lines if line.startswith(start)], start
    assert "1/" in next(line for line in lines if line.startswith("- samparser + decoder, cached tokens"))


def test_the_benchmark_draws_the_figure_of_scale(benchmark, tmp_path, capsys):
    benchmark("--rounds", 1, "--only", "scale", "profile", "--figure", tmp_path / "figures" / "scale.png")
    assert (tmp_path / "figures" / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert "| cached images read: 20 |" in capsys.readouterr().out


def test_the_benchmark_opens_a_coco_file_and_reads_images_by_processes(benchmark, capsys):
    benchmark("--step_rounds", 1, "--only", "data")
    printed = capsys.readouterr().out
    assert "A COCO file of 60 images with 400 polygons" in printed
    for start in ("| pycocotools | 1.00 (1.00-1.00) |", "| samparser | ", "| 1 | 1.00", "| 2 | ", "| 4 | "):
        assert [line for line in printed.splitlines() if line.startswith(start)], start


def test_a_part_that_does_not_exist_is_named(benchmark):
    with pytest.raises(ValueError, match=r"no part fast; there are families, layers, transposed, evaluation, mixed"):
        benchmark("--only", "fast")


def test_a_device_that_is_not_here_is_refused_before_anything_is_measured(benchmark, capsys):
    with pytest.raises(ValueError, match=r"--device xla: torch .* cannot use it here .* Leave --device out"):
        benchmark("--device", "xla")
    assert capsys.readouterr().out == ""


def test_the_benchmark_measures_on_another_device(benchmark, gpu, monkeypatch, capsys):
    if not torch.cuda.is_available():  # the stand-in has neither a clock nor a memory of its own
        for name in ("synchronize", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.accelerator, name, lambda device: None, raising=False)
        for name, value in (("memory_allocated", 0), ("max_memory_allocated", 1)):
            monkeypatch.setattr(torch.accelerator, name, lambda device, value=value: value, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a stand-in")
    parts = ("layers", "mixed", "steps", "lean")
    benchmark("--rounds", 1, "--step_rounds", 1, "--device", "cuda", "--only", *parts)
    printed = capsys.readouterr().out
    assert "wall time" in printed.splitlines()[0]
    assert "| samparser + decoder, cached projection |" in printed


def test_the_benchmark_fills_caches_and_reads_many_entries(benchmark, capsys):
    benchmark("--step_rounds", 1, "--only", "filling", "reading", "--entries", 12)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = {row[0]: row[1:] for row in rows}
    for way in ("one process", "one worker", "two workers, shards of 8", "two workers, bf16 autocast"):
        assert all(float(share.rstrip("%")) > 0 for share in cells[way])
        assert float(cells[way][0].rstrip("%")) < 100
    assert cells["a file each"][3] == "1.00"
    assert {"shards of 64", "shards of 1000"} < cells.keys()
