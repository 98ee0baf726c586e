import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import SamModel, SamProcessor

EXAMPLES = Path(__file__).parents[2] / "examples"
SHIPPED = EXAMPLES / "assets" / "small-sam"
UNSEEN = 991
"""A series of scenes that no training has drawn."""

sys.path.insert(0, str(EXAMPLES))
script = importlib.import_module("pretrain_small_sam")
model_module = importlib.import_module("pretraining.model")
recipe_module = importlib.import_module("pretraining.recipe")
samples = importlib.import_module("pretraining.samples")
scenes = importlib.import_module("pretraining.scenes")
evaluation = importlib.import_module("pretraining.evaluation")
losses = importlib.import_module("pretraining.losses")
cutouts = importlib.import_module("pretraining.cutouts")
muon = importlib.import_module("pretraining.muon")

TINY = {
    "image_size": 64,
    "hidden_size": 24,
    "layers": 2,
    "heads": 2,
    "window": 4,
    "global_layers": [1],
    "channels": 32,
    "decoder_heads": 2,
    "decoder_mlp": 48,
}
PHASES = [
    {"until": 2, "size": 32, "batch": 2, "objects": 2, "zoom": [0.5, 1.0], "photo_zoom": [0.5, 1.0]},
    {"until": 4, "size": 64, "batch": 2, "objects": 2, "zoom": [0.5, 1.0], "photo_zoom": [0.5, 1.0]},
]
SETTINGS = {"architecture": TINY, "phases": PHASES, "scenes": 1, "held_out_scenes": 3, "held_out_photos": 1}
SETTINGS |= {"learning_rate": [[0, 1e-3], [2, 1e-3], [4, 0]], "box_only": 1}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(SETTINGS))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos in COCO's layout, each with a square."""
    folder = tmp_path / "photos"
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    document: dict[str, list] = {"images": [], "annotations": []}
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        pixels[10:30, 20:40] = 255 * number
        Image.fromarray(pixels).save(folder / "train2017" / f"{number}.jpg")
        document["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40})
        square = [[20, 10, 40, 10, 40, 30, 20, 30]]
        document["annotations"].append({"image_id": number, "segmentation": square, "iscrowd": 0})
        document["annotations"].append({"image_id": number, "segmentation": {"counts": []}, "iscrowd": 1})
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A disc of many colours, a letter of one colour and an opaque picture, in folders of their own."""
    folder = tmp_path / "stamps"
    y, x = np.mgrid[:40, :60]
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    disc = noise.copy()
    disc[..., 3] = 255 * ((x - 25) ** 2 + (y - 20) ** 2 < 15**2)
    letter = np.where((x % 20 < 8)[..., None], np.array([20, 20, 20, 255], np.uint8), np.uint8(0))
    opaque = noise.copy()
    opaque[..., 3] = 255
    for name, pixels in {"animals/disc": disc, "letters/a": letter, "opaque": opaque}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def run(output: Path, recipe: Path, **options) -> list[dict]:
    options = {"device": "cpu", "scene_processes": 1, "evaluate_every": 2, "save_every": 1} | options
    script.main(script.Arguments(output=str(output), recipe=str(recipe), **options))
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_training_that_stops_and_resumes_ends_with_the_same_state_and_checkpoint(tmp_path, recipe_file, photos):
    whole = run(tmp_path / "whole", recipe_file, photos=str(photos))
    run(tmp_path / "parts", recipe_file, photos=str(photos), until=3)
    run(tmp_path / "parts", recipe_file, photos=str(photos), resume=True)
    for name in ("state.safetensors", "checkpoint/model.safetensors"):
        ours, theirs = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key
    assert [record["step"] for record in whole] == [4]
    assert {"synthetic_iou", "photos_iou"} <= whole[-1].keys()
    assert SamModel.from_pretrained(tmp_path / "whole" / "checkpoint").dtype == torch.float32


def test_a_folder_with_a_training_is_refused_and_so_is_a_resume_by_other_settings(tmp_path, recipe_file):
    output = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(output, recipe_file, resume=True)
    run(output, recipe_file, until=1)
    with pytest.raises(FileExistsError, match=r"training of 1 steps.*--resume"):
        run(output, recipe_file)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(SETTINGS | {"learning_rate": [[0, 0.5]], "seed": 3}))
    with pytest.raises(ValueError, match=r"first 1 steps.*seed, learning_rate"):
        run(output, other, resume=True)


def test_later_phases_may_change_on_resume_and_earlier_ones_may_not(recipe_file):
    recipe = recipe_module.Recipe.load(recipe_file)
    first, second = recipe.phases
    longer = replace(recipe, phases=(first, replace(second, until=8)), learning_rate=((0, 1e-3), (4, 1e-3), (8, 0)))
    assert recipe.differences(longer, 3) == []
    assert recipe.differences(longer, 4) == ["learning_rate"]  # the rate of the shorter one falls from step 2
    assert longer.differences(recipe, 5) == ["phases"]  # the shorter one has no fifth step
    assert recipe.differences(replace(recipe, phases=(replace(first, batch=4), second)), 1) == ["phases"]
    assert recipe.differences(replace(recipe, box_only=3), 1) == []
    assert recipe.differences(replace(recipe, average=((0, 0.998), (1, 0.0))), 1) == []
    assert recipe.differences(replace(recipe, average=((0, 0.998), (1, 0.0))), 2) == ["average"]
    assert recipe.differences(replace(recipe, offset=((0, 0.0), (1, 0.5))), 2) == ["offset"]
    assert recipe.differences(replace(recipe, box_only=3), 2) == ["box_only"]


def test_a_recipe_comes_back_from_json_and_unknown_settings_are_named(tmp_path, recipe_file):
    recipe = recipe_module.Recipe.load(recipe_file)
    copy = tmp_path / "copy.json"
    copy.write_text(recipe.to_json())
    assert recipe_module.Recipe.load(copy) == recipe
    copy.write_text('{"learning_rat": 1}')
    with pytest.raises(ValueError, match=r"learning_rat; a Recipe can set architecture, phases, .*learning_rate"):
        recipe_module.Recipe.load(copy)


def test_the_larger_recipe_of_the_docs_can_be_read_and_the_shipped_one_is_the_default(tmp_path):
    page = (EXAMPLES.parent / "docs" / "small-sam.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    larger = tmp_path / "larger.json"
    larger.write_text(block)
    recipe = recipe_module.Recipe.load(larger)
    assert recipe.architecture.image_size == 512
    assert recipe.rate(recipe.steps) == recipe.logit_offset(0) == 0
    assert recipe_module.Recipe.load(SHIPPED / "recipe.json") == recipe_module.Recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": 2}, r"end at steps \[2, 2\]"),
        ({"size": 60}, "trains at 60 px; a model of 64 px with patches of 8 px"),
        ({"size": 72}, "trains at 72 px"),
    ],
    ids=["order", "no multiple", "too large"],
)
def test_phases_that_cannot_be_trained_are_refused(recipe_file, changes, message):
    recipe = recipe_module.Recipe.load(recipe_file)
    with pytest.raises(ValueError, match=message):
        replace(recipe, phases=(recipe.phases[0], replace(recipe.phases[1], **changes)))


def test_a_scene_is_a_function_of_its_seed_and_number():
    one, again, other = (scenes.make_scene(seed, 4) for seed in (5, 5, 6))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.labels, again.labels)
    assert not np.array_equal(one.image, other.image)
    assert one.image.dtype == one.labels.dtype == np.uint8
    assert one.image.shape == (*one.labels.shape, 3)


def test_only_pictures_of_several_colours_on_a_transparent_ground_are_cut_outs(stamps, tmp_path):
    (disc,) = cutouts.load_cutouts(stamps)
    assert disc.shape == (29, 29, 4)
    assert (disc[..., 3] > 127).sum() == ((np.mgrid[:29, :29] - 14) ** 2).sum(0).__lt__(15**2).sum()
    with pytest.raises(FileNotFoundError, match="no PNG of an object on a transparent ground"):
        cutouts.load_cutouts(tmp_path / "none")


def test_scenes_are_made_of_cut_outs_where_there_are_some(stamps):
    given = cutouts.load_cutouts(stamps)
    drawn = [scenes.make_scene(5, number) for number in range(30)]
    assembled = [scenes.make_scene(5, number, (), given) for number in range(30)]
    again = [scenes.make_scene(5, number, (), given) for number in range(30)]
    assert all(np.array_equal(one.image, two.image) for one, two in zip(assembled, again, strict=True))
    assert not any(np.array_equal(one.image, two.image) for one, two in zip(drawn, assembled, strict=True))
    for scene in assembled:
        numbers = np.unique(scene.labels)
        assert numbers[0] == 0
        assert len(numbers) > 1


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ muon.orthogonalised(matrix) @ vh.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4
    assert 0.6 < inner.diag().min() < inner.diag().max() < 1.3


def test_muon_steps_as_far_as_adamw_would_and_treats_a_kernel_as_a_matrix():
    kernel = torch.nn.Parameter(torch.zeros(16, 4, 3, 3))
    gradient = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    optimizer = muon.Muon([kernel], lr=0.01, weight_decay=0.0)
    kernel.grad = gradient.clone()
    optimizer.step()
    expected = muon.orthogonalised(gradient.view(16, 36))
    assert torch.nn.functional.cosine_similarity(-kernel.detach().flatten(), expected.flatten(), 0) > 0.999
    assert 0.5 < kernel.detach().square().mean().sqrt() / (0.01 * 0.2) < 1.3


def test_a_sample_is_a_function_of_its_number_and_its_boxes_hold_its_masks():
    drawn = [scenes.make_scene(UNSEEN, number) for number in range(4)]
    options = {"zoom": (0.5, 1.2), "photo_zoom": (0.5, 1.0), "photo_share": 0.0, "jitter": 0.0}
    data = samples.Samples(drawn, [], 64, 4, seed=1, **options)
    backwards = {number: data[number] for number in (5, 4, 3)}
    for number in (3, 4, 5):
        sample = data[number]
        for name, value in sample.items():
            assert torch.equal(value, backwards[number][name]), name
        for (x0, y0, x1, y1), mask in zip(sample["boxes"].int().tolist(), sample["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert (int(columns.min()), int(rows.min())) == (x0 // 2, y0 // 2)
            assert (int(columns.max()), int(rows.max())) == ((x1 - 1) // 2, (y1 - 1) // 2)


def test_a_tile_as_large_as_the_canvas_is_the_plain_forward_pass(recipe_file):
    model = model_module.new_model(recipe_module.Recipe.load(recipe_file).architecture, 0).eval()
    pixels, boxes = torch.randn(1, 3, 64, 64), torch.tensor([[[4.0, 8.0, 40.0, 30.0], [0.0, 0.0, 64.0, 64.0]]])
    with torch.no_grad():
        logits, quality = model_module.predict_tile(model, pixels, boxes=boxes)
        plain = model(pixel_values=pixels, input_boxes=boxes, multimask_output=False)
    assert torch.equal(logits, plain.pred_masks)
    assert torch.equal(quality, plain.iou_scores)


def test_a_tile_takes_its_own_part_of_the_positions(recipe_file):
    """With attention in windows and a tile of one window, a tile sees what the canvas sees there."""
    architecture = replace(recipe_module.Recipe.load(recipe_file).architecture, global_layers=())
    model = model_module.new_model(architecture, 0).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model.vision_encoder.neck.conv2.weight[..., 1, :][..., :1] = 0
        inner = torch.zeros_like(model.vision_encoder.neck.conv2.weight)
        inner[..., 1, 1] = model.vision_encoder.neck.conv2.weight[..., 1, 1]
        model.vision_encoder.neck.conv2.weight.copy_(inner)  # the 3 x 3 kernel would look beyond the tile
        whole = model.vision_encoder(pixels)[0]
        tile = model_module.embed_tile(model, pixels[..., :32, 32:], left=4, top=0)
    torch.testing.assert_close(tile, whole[..., :4, 4:], rtol=1e-4, atol=1e-5)


def test_the_loss_counts_small_objects_as_much_as_large_ones_and_is_small_for_the_truth():
    targets = torch.zeros(1, 2, 32, 32)
    targets[0, 0, :2, :2], targets[0, 1, 4:24, 4:24] = 1, 1
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 48.0, 48.0]]])
    near = losses.near_box(boxes, 32, 32, stride=2)
    right, empty = ((targets * 2 - 1) * 12)[:, :, None], torch.full((1, 2, 1, 32, 32), -12.0)
    assert losses.mask_loss(right, targets, near).max() < 0.01
    assert losses.mask_loss(empty, targets, near).min() > 2
    assert losses.mask_iou(right, targets).tolist() == [[[1.0], [1.0]]]


def test_an_offset_moves_the_best_logits_by_itself():
    targets = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).round()
    boxes, weights = torch.tensor([[[0.0, 0.0, 32.0, 32.0]]]), torch.ones(1, 1)
    logits, quality = ((targets * 2 - 1) * 3)[:, :, None], torch.ones(1, 1, 1)
    plain = losses.total_loss(logits, quality, targets, boxes, weights, 32)
    moved = losses.total_loss(logits + 0.6, quality, targets, boxes, weights, 32, offset=0.6)
    torch.testing.assert_close(moved, plain)
    assert losses.total_loss(logits, quality, targets, boxes, weights, 32, offset=0.6) > plain


def test_held_out_pictures_are_what_the_processor_makes_of_them():
    scene = scenes.make_scene(UNSEEN, 0)
    photo = samples.Photo(scene.image[:200], [[np.array([[20.0, 20], [120, 30], [60, 150]])]])
    picture = evaluation.hold_out(photo, 256, seed=0)
    processor = model_module.processor_for(model_module.Architecture())
    theirs = processor(Image.fromarray(photo.image), return_tensors="pt")["pixel_values"][0]
    assert (picture.pixels - theirs).abs().max() < 0.03  # one grey level of resampling
    assert picture.pixels[:, 178:].abs().max() == 0


def test_the_shipped_checkpoint_loads_offline_and_beats_the_box_on_unseen_scenes():
    model, processor = SamModel.from_pretrained(SHIPPED), SamProcessor.from_pretrained(SHIPPED)
    assert model.dtype == torch.float32
    assert processor.image_processor.size["longest_edge"] == model.config.vision_config.image_size == 256
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 6_000_000
    drawn = (scenes.make_scene(UNSEEN, number) for number in range(8))
    pictures = [picture for scene in drawn if (picture := evaluation.hold_out(scene, 256, seed=0)) is not None]
    reached, without = evaluation.mean_iou(model, pictures), evaluation.baselines(pictures)
    assert reached > without["box"] + 0.02, (reached, without)
