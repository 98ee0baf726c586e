"""Everything that was found, as text, JSON and pictures."""

import json

from PIL import Image

from samparser.inspection import Findings, interpolate, layer_moves, open_adapters, similarity
from samparser.inspection.output_folder import InspectionFolder
from samparser.inspection.report import draw, picture_names


def test_pictures_and_json_hold_what_was_found(folders, evaluation, tmp_path):
    model, _ = open_adapters([folders["plain"], folders["pairs"]])
    names = list(model.peft_config)
    findings = Findings({name: layer_moves(model, name) for name in names}, similarity(model, names))
    folder = InspectionFolder(tmp_path / "out")
    written = draw(findings, model, folder)
    assert [path.name for path in written] == [
        *("spectra-plain.png", "spectra-pairs.png", "pairs-pairs.png", "similarity.png")
    ]
    assert {path.name for path in written} < set(picture_names(names, scored=False))
    findings.curves = [interpolate(model, "plain", evaluation, (0.0, 1.0))]
    written = draw(findings, model, folder)
    assert {path.name for path in written} < set(picture_names(names, scored=True))
    for path in written:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    folder.finish(findings.plain())
    content = json.loads((folder.path / "inspection.json").read_text())
    assert content["interpolation"]["plain"][1]["scale"] == 1
    assert content["cosine"]["total"] == findings.similarity.total
    assert [layer["terms"] for layer in content["adapters"]["pairs"]["layers"]] == [6, 6]
    text = str(findings)
    assert text.index("plain\nlayer") < text.index("pairs\nlayer") < text.index("cosine, all layers")
    assert "mIoU gained over scale 0" in text


def test_one_adapter_has_no_matrix(folders, tmp_path):
    model, _ = open_adapters([folders["plain"]])
    findings = Findings({"plain": layer_moves(model, "plain")}, similarity(model, ["plain"]))
    assert [path.name for path in draw(findings, model, InspectionFolder(tmp_path))] == ["spectra-plain.png"]
    assert "cosine" not in str(findings)
