"""The CT column of Table 3, as its experiment file has it, on generated volumes: scored and paired by scan, in DSC."""

import json
from pathlib import Path

import numpy as np
import pytest

from samparser.compare import compare, parse_experiment, select

nibabel = pytest.importorskip("nibabel", reason="the medical extra is not installed")

TABLE_3 = Path(__file__).parents[2] / "examples/compare/experiments/table3.json"
CASES, SLICES = ("0001", "0002", "0003"), 5


def write_scan(root: Path, case: str, seed: int) -> None:
    """A scan of 40 x 36 x 5 voxels with a liver in every slice and a spleen in all but the last."""
    rng = np.random.default_rng(seed)
    hounsfield = rng.integers(-120, -40, (40, 36, SLICES)).astype(np.int16)
    labels = np.zeros((40, 36, SLICES), np.uint8)
    labels[3:19, 4 + seed : 20 + seed] = 1
    labels[24:36, 6:20, :-1] = 3
    hounsfield[labels == 1], hounsfield[labels == 3] = 60, 180
    for name, array in (("images/FLARE22_Tr_{}_0000", hounsfield), ("labels/FLARE22_Tr_{}", labels)):
        path = root / "FLARE22Train" / (name.format(case) + ".nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.5, -1.5, 5, 1])), path)


def test_the_ct_column_is_scored_and_paired_by_scan(tmp_path, tiny_sam_folder):
    for seed, case in enumerate(CASES):
        write_scan(tmp_path / "data", case, seed)
    content = json.loads(TABLE_3.read_text("utf-8"))
    content |= {"model": str(tiny_sam_folder), "training": {"num_train_epochs": 1, "use_cpu": True}}
    content["prompts"] = {"jitter_max": 2}  # the organs here are 12 to 16 pixels wide
    content["data"][0]["options"]["val_ratio"] = 0.6  # so that 9 of 15 slices, drawn one by one, hold all three scans
    experiment = select(parse_experiment(content), data=["ao"], rows=["zero-shot", "decoder", "samparser"], seeds=2)

    output = tmp_path / "out"
    report = compare(experiment, output=output, data_root=tmp_path / "data", cost=False, say=lambda line: None)

    (column,) = report.columns
    assert len(column.runs["samparser"]) == 2
    cells = sorted(path.stem for path in (output / "results").iterdir())
    assert cells == sorted(
        ["ao--zero-shot--once", *(f"ao--{m}--seed{s}" for m in ("decoder", "samparser") for s in (0, 1))]
    )
    means = []
    for seed in (0, 1):
        cell = json.loads((output / "results" / f"ao--samparser--seed{seed}.json").read_text("utf-8"))
        assert set(cell["units"]["dsc"]) == {f"images/FLARE22_Tr_{case}" for case in CASES}
        assert cell["settings"]["training"]["lambda_focal"] == 0  # the medical recipe
        means.append(sum(cell["units"]["dsc"].values()) / len(CASES))
    assert column.score("samparser", "dsc").mean == pytest.approx(sum(means) / 2)
    page = (output / "table3.md").read_text("utf-8")
    assert "DSC" in page
    assert "91.1" in page  # what the paper reports for SAM-PARSER
