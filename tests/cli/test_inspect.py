"""`samparser inspect` as a user calls it."""

import json

import pytest
import torch

from samparser.cli import main
from samparser.methods import load_model, save_trained
from tests.conftest import make_tiny_sam
from tests.inspection.conftest import tuned


def run(capsys, *arguments):
    try:
        status = main(["inspect", *(str(argument) for argument in arguments)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_sam_folder):
    """Two adapters of one base, a fully tuned model, and an adapter with its decoder."""
    root = tmp_path_factory.mktemp("runs")
    for name, model in {
        "nuclei": tuned(0),
        "ships": tuned(1, expansion="pairs"),
        "decoder": tuned(2, decoder=True),
    }.items():
        model.get_base_model().name_or_path = str(tiny_sam_folder)
        model.peft_config["default"].base_model_name_or_path = str(tiny_sam_folder)
        save_trained(model, root / name / "adapter")
    full = make_tiny_sam()
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            if name.startswith(("vision_encoder.neck", "mask_decoder")):
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    full.save_pretrained(root / "full")
    load_model(tiny_sam_folder)[1].save_pretrained(root / "full")
    return root


def test_two_adapters_with_images_give_tables_pictures_and_json(capsys, runs, toy_coco, tmp_path):
    words = (runs / "nuclei/adapter", runs / "ships/adapter", "--data", toy_coco, "--output", tmp_path / "out")
    words += ("--scales", 0, 1, "--limit_images", 2)
    status, out, err = run(capsys, *words)
    assert status == 0, err
    for part in ("nuclei\nlayer", "ships\nlayer", "cosine, all layers", "nuclei - ships", "mIoU gained over the base"):
        assert part in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("inspection.json", "interpolation.png", "pairs-ships.png", "similarity.png"),
        *("spectra-nuclei.png", "spectra-ships.png"),
    }
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert [one["weights"] for one in content["arithmetic"]] == [
        *({}, {"nuclei": 1.0}, {"ships": 1.0}, {"nuclei": 1.0, "ships": 1.0}, {"nuclei": 1.0, "ships": -1.0})
    ]
    assert [one["scale"] for one in content["interpolation"]["ships"]] == [0, 1]
    # The scale of 0 is the base of the sums, and that of 1 the adapter by itself.
    assert content["interpolation"]["ships"][0]["miou"] == content["arithmetic"][0]["miou"]
    assert content["interpolation"]["ships"][1]["miou"] == content["arithmetic"][2]["miou"]
    assert content["settings"]["command"]["limit_images"] == 2

    (tmp_path / "out" / "similarity.png").write_text("mine")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "would replace" in err
    assert (tmp_path / "out" / "similarity.png").read_text() == "mine"


def test_a_weighted_sum_is_written_as_an_adapter_and_again(capsys, runs, tmp_path):
    words = (runs / "nuclei/adapter", runs / "ships/adapter", "--weights", 1, -0.5, "--output", tmp_path / "out")
    for _ in range(2):
        status, out, err = run(capsys, *words)
        assert status == 0, err
        assert f"written: {tmp_path / 'out' / 'combination'}, " in out
    model, _ = load_model(tmp_path / "out" / "combination")
    nuclei, ships = load_model(runs / "nuclei/adapter")[0], load_model(runs / "ships/adapter")[0]
    layer = "base_model.model.vision_encoder.neck.conv2"
    change, first, second = (one.get_submodule(layer).get_delta_weight("default") for one in (model, nuclei, ships))
    torch.testing.assert_close(change, first - 0.5 * second, rtol=1e-4, atol=1e-6)


def test_a_full_fine_tune_is_distilled_and_inspected_beside_an_adapter(capsys, runs, tmp_path):
    words = ("--distil", runs / "full", "--rank", 4, "--keep", "mask_decoder", "--output", tmp_path / "out")
    status, out, err = run(capsys, runs / "nuclei/adapter", *words)
    assert status == 0, err
    assert "mask_decoder: changed by" in out
    assert "kept in full" in out
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert list(content["adapters"]) == ["nuclei", "distilled"]
    assert 0 < content["distilled"]["share"] < 1
    assert [layer["pairs"] for layer in content["distilled"]["layers"]] == [4, 4]
    load_model(tmp_path / "out" / "distilled")


def test_a_model_is_distilled_from_its_base_alone(capsys, runs, tiny_sam_folder, tmp_path):
    words = ("--base", tiny_sam_folder, "--distil", runs / "full", "--layers", "vision_encoder.neck.conv1")
    status, out, err = run(capsys, *words, "--rank", 0, "--output", tmp_path / "out")
    assert status == 0, err
    assert "adapter_model.safetensors" in out
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert [layer["layer"] for layer in content["distilled"]["layers"]] == ["vision_encoder.neck.conv1"]


def test_adapters_without_a_sum_are_scored_by_themselves(capsys, runs, toy_coco):
    words = (runs / "decoder/adapter", runs / "decoder/adapter", "--data", toy_coco, "--scales", 1, "--limit_images", 1)
    status, out, err = run(capsys, *words)
    assert status == 0, err
    assert "sums and differences are left out:" in out
    assert "copies have no sum" in out
    assert "decoder-2\n" in out


def test_features_are_encoded_once(capsys, runs, toy_coco, tmp_path):
    words = (runs / "nuclei/adapter", "--data", toy_coco, "--scales", 0, 1, "--limit_images", 2)
    _, plain, _ = run(capsys, *words)
    status, cached, err = run(capsys, *words, "--cache", tmp_path / "features")
    assert status == 0, err
    assert plain[plain.index("nuclei\n") :] == cached[cached.index("nuclei\n") :]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is nothing to inspect"),
        (["no/such/folder"], "There is no folder no/such/folder"),
        (["{nuclei}", "--scales", "0", "1"], "--scales is about scores, and there are no images to score"),
        (["{nuclei}", "--split", "test"], "--split is about scores"),
        (["{nuclei}", "--eval_jitter", "3"], "--eval_jitter is about scores"),
        (["{nuclei}", "--layout", "coco"], "--layout is about scores"),
        (["{nuclei}", "--rank", "3"], "--rank 3 is about distilling: give --distil, too"),
        (["{nuclei}", "--weights", "1"], "--weights makes a sum to score or to write"),
        (["{nuclei}", "--weights", "1", "2", "--output", "x"], "--weights has 2 numbers for 1 adapter"),
        (["{nuclei}", "--distil", "{full}"], "name a folder for it with --output"),
        (["--distil", "{full}", "--output", "x"], "give it as --base"),
        (["{full}"], "is no adapter but a whole model"),
        (["{nuclei}", "--data", "d", "--scales", "nan"], "only finite ones"),
        (["{nuclei}", "--distil", "{base}", "--output", "{out}"], "The two models have the same weights"),
        (["{nuclei}", "--distil", "{full}", "--layers", "neck2", "--output", "{out}"], "neck2"),
        (["{nuclei}", "--output", "{file}"], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(capsys, runs, tiny_sam_folder, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    places = {"nuclei": runs / "nuclei/adapter", "full": runs / "full", "base": tiny_sam_folder}
    places |= {"out": tmp_path / "out", "file": tmp_path / "file"}
    status, _, err = run(capsys, *(word.format(**places) for word in words))
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
