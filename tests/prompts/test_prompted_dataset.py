import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from samparser.data import DataError, DataSettings, Instance, RandomlyFlipped, Sample, open_dataset
from samparser.prompts import PromptedDataset, PromptSettings, collate
from tests.data.files import picture, rectangle

S = 64


def sample(count: int, size=(48, 96), name="x", void=None) -> Sample:
    """Boxes of 12 x 10 px in a row."""
    instances = tuple(
        Instance.from_mask(rectangle(2 + 3 * n, 20, 14 + 3 * n, 30, *size), 1, str(n)) for n in range(count)
    )
    return Sample(name, picture(*size), instances, void)


def prompted(samples, processor, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PromptedDataset(samples, processor, PromptSettings(**settings), seed=3)


QUIET = {"jitter_max": 8.0}


def test_an_item_has_the_tensors_that_sam_takes(tiny_processor):
    item = prompted([sample(3)], tiny_processor, **QUIET)[0]
    assert {key: (tuple(v.shape), v.dtype) for key, v in item.items() if key != "name"} == {
        "pixel_values": ((3, S, S), torch.float32),
        "input_boxes": ((3, 4), torch.float32),
        "masks": ((3, S, S), torch.bool),
        "pixel_valid": ((S, S), torch.bool),
    }
    assert item["name"] == "x"
    expected = tiny_processor(picture(48, 96), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(item["pixel_values"], expected)


def test_the_padding_is_neither_valid_nor_in_a_mask(tiny_processor):
    item = prompted([sample(3)], tiny_processor, **QUIET)[0]
    assert item["pixel_valid"].sum() == 32 * 64  # 48 x 96 becomes 32 x 64
    assert item["pixel_valid"][:32].all()
    assert not item["masks"][:, 32:].any()


def test_void_pixels_are_not_valid(tiny_processor):
    void = rectangle(30, 0, 60, 48, 48, 96)
    item = prompted([sample(1, void=void)], tiny_processor, **QUIET)[0]
    assert item["pixel_valid"][:32].sum() == 32 * 64 - 32 * 20


def test_without_jitter_boxes_are_tight_around_their_masks(tiny_processor):
    data = prompted([sample(3)], tiny_processor, jitter_max=0.0)
    item = data[0]
    assert torch.allclose(item["input_boxes"][1], torch.tensor([5.0, 20, 17, 30]) * (64 / 96))
    for mask, box in zip(item["masks"], item["input_boxes"], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (around - box).abs().max() <= 0.5
    data.set_epoch(4)
    assert torch.equal(data[0]["input_boxes"], item["input_boxes"])


def test_jitter_is_counted_in_the_frame_that_was_asked_for(tiny_processor):
    tight = prompted([sample(3)], tiny_processor, jitter_max=0.0)[0]["input_boxes"]
    for frame, scale in (("original", 64 / 96), ("input", 1.0)):
        data = prompted([sample(3)], tiny_processor, jitter_min=4.0, jitter_max=4.0, jitter_frame=frame)
        moves = (data[0]["input_boxes"] - tight).abs()
        assert torch.allclose(moves[2], torch.tensor(4.0 * scale), atol=1e-4)


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one if key != "name")


@pytest.mark.parametrize("prompt", [{"prompt": "box"}, {"prompt": "point", "points": 3, "point_choice": "random"}])
def test_prompts_depend_on_seed_epoch_and_index_alone(tiny_processor, prompt):
    samples = [sample(9, name="a"), sample(9, name="b")]
    settings = {"max_instances": 4, **QUIET, **prompt}
    data, again = prompted(samples, tiny_processor, **settings), prompted(samples, tiny_processor, **settings)
    again[1], again[0]  # the order of access must not matter
    assert equal(data[0], again[0])
    first = data[0]
    data.set_epoch(1)
    assert not equal(first, data[0])
    data.set_epoch(0)
    assert equal(first, data[0])
    assert not equal(data[0], data[1])
    other = PromptedDataset(samples, tiny_processor, PromptSettings(**settings), seed=4)
    assert not equal(first, other[0])


def test_worker_processes_draw_the_same_prompts(tiny_processor):
    samples = [sample(5, name=str(n)) for n in range(4)]
    data = prompted(samples, tiny_processor, **QUIET)
    alone = list(DataLoader(data, batch_size=2, collate_fn=collate))
    shared = list(DataLoader(data, batch_size=2, collate_fn=collate, num_workers=2))
    for one, other in zip(alone, shared, strict=True):
        assert one["names"] == other["names"]
        assert torch.equal(one["input_boxes"], other["input_boxes"])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_that_live_on_draw_the_prompts_and_flips_of_each_epoch(tiny_processor, start):
    samples = [sample(5, name=str(n)) for n in range(4)]
    data = prompted(RandomlyFlipped(samples, 1), tiny_processor, **QUIET)
    context = torch.multiprocessing.get_context(start)
    shared = DataLoader(
        data, collate_fn=collate, num_workers=2, persistent_workers=True, multiprocessing_context=context
    )
    alone = prompted(RandomlyFlipped(samples, 1), tiny_processor, **QUIET)
    seen = []
    for epoch in (0, 1, 3):
        data.set_epoch(epoch)
        alone.set_epoch(epoch)
        batches = [{key: batch[key] for key in ("input_boxes", "pixel_values")} for batch in shared]
        for index, batch in enumerate(batches):
            assert torch.equal(batch["input_boxes"][0], alone[index]["input_boxes"])
            assert torch.equal(batch["pixel_values"][0], alone[index]["pixel_values"])
        seen.append(torch.cat([batch["input_boxes"] for batch in batches]))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_copy_has_an_epoch_of_its_own_that_its_workers_see(tiny_processor, copied):
    data = prompted([sample(3)], tiny_processor, **QUIET)
    data.set_epoch(2)
    other = copied(data)
    assert equal(data[0], other[0])
    loader = DataLoader(other, collate_fn=collate, num_workers=1, persistent_workers=True)
    list(loader)
    other.set_epoch(5)
    (batch,) = loader
    assert data.epoch == 2
    assert torch.equal(batch["input_boxes"][0], other[0]["input_boxes"])
    assert not torch.equal(data[0]["input_boxes"], other[0]["input_boxes"])


def test_max_instances_draws_a_new_choice_in_each_epoch(tiny_processor):
    data = prompted([sample(12)], tiny_processor, max_instances=4, jitter_max=0.0)
    chosen = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        boxes = data[0]["input_boxes"]
        assert len(boxes) == len(data[0]["masks"]) == 4
        assert (boxes[1:, 0] > boxes[:-1, 0]).all()  # in the order of the source, none twice
        chosen |= set(boxes[:, 0].tolist())
    assert len(chosen) == 12
    assert len(prompted([sample(12)], tiny_processor, max_instances=0, **QUIET)[0]["masks"]) == 12


def test_points_lie_in_their_masks(tiny_processor):
    for choice in ("inside", "random"):
        data = prompted([sample(3)], tiny_processor, prompt="point", points=4, point_choice=choice)
        item = data[0]
        assert item["input_points"].shape == (3, 4, 2)
        assert item["input_labels"].tolist() == [[1] * 4] * 3
        assert "input_boxes" not in item
        for mask, points in zip(sample(3).masks, item["input_points"] * 96 / 64, strict=True):
            assert mask[points[:, 1].long(), points[:, 0].long()].all()


def test_an_image_without_instances_gives_an_empty_item(tiny_processor):
    for prompt in ("box", "point"):
        data = prompted([sample(0), sample(2)], tiny_processor, prompt=prompt, **QUIET)
        assert data[0]["masks"].shape == (0, S, S)
        batch = collate([data[0]])
        assert batch["instance_valid"].tolist() == [[False]]
        assert batch["prompt_rows"].tolist() == []
        assert collate([data[0], data[1]])["instance_valid"].tolist() == [[False, False], [True, True]]


def test_collate_fills_up_and_says_where(tiny_processor, tiny_sam):
    for prompt, key in (("box", "input_boxes"), ("point", "input_points")):
        data = prompted([sample(1, name="a"), sample(3, (96, 48), "b")], tiny_processor, prompt=prompt, **QUIET)
        items = [data[0], data[1]]
        batch = collate(items)
        assert batch["names"] == ["a", "b"]
        assert batch["instance_valid"].tolist() == [[True, False, False], [True, True, True]]
        assert batch["prompt_rows"].tolist() == [0, 3, 4, 5]
        for row, item in enumerate(items):
            count = len(item["masks"])
            for name in (key, "masks"):
                assert torch.equal(batch[name][row, :count], item[name])
        assert not batch["masks"][0, 1:].any()
        inputs = {name: batch[name] for name in (key, "input_labels", "pixel_values") if name in batch}
        with torch.no_grad():
            output = tiny_sam(**inputs, multimask_output=False)
        assert output.pred_masks.shape[:3] == (2, 3, 1)
        assert output.pred_masks.isfinite().all()


def test_images_of_unusual_shapes_are_not_mistaken_for_channels_first(tiny_processor):
    item = prompted([Sample("x", picture(3, 90), ())], tiny_processor, **QUIET)[0]
    assert item["pixel_valid"].sum() == 2 * 64


def test_large_jitter_on_small_objects_is_warned_of_once(tiny_processor):
    data = PromptedDataset([sample(2)], tiny_processor)
    with pytest.warns(UserWarning, match=r"up to 20 px .* of x have a median shorter side of 10 px"):
        data[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data[0]
        PromptedDataset([sample(2)], tiny_processor, PromptSettings(jitter_max_fraction=0.1))[0]
        PromptedDataset([sample(2)], tiny_processor, PromptSettings(jitter_max=0.0))[0]
        PromptedDataset([sample(2)], tiny_processor, PromptSettings(prompt="point"))[0]


def test_a_prompted_data_set_can_be_sent_to_another_process(tiny_processor, coco_root):
    data = prompted(open_dataset(DataSettings(str(coco_root)), "train"), tiny_processor, **QUIET)
    assert equal(pickle.loads(pickle.dumps(data))[2], data[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jitter_min": 5.0, "jitter_max": 2.0}, "got 5.0 and 2.0"),
        ({"jitter_max_fraction": -0.1}, "got -0.1"),
        ({"points": 0}, "at least 1, got 0"),
        ({"max_instances": -1}, r"0 \(all\) or more, got -1"),
        ({"prompt": "mask"}, "box or point or box,point, got 'mask'"),
        ({"jitter_frame": "model"}, "original or input, got 'model'"),
        ({"jitter_direction": "inward"}, "outward or both, got 'inward'"),
        ({"point_choice": "all"}, "inside or random, got 'all'"),
    ],
)
def test_prompt_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptSettings(**settings)


def test_an_image_with_no_shorter_side_left_is_refused(tiny_processor):
    with pytest.raises(DataError, match="x has 300 x 1 px; resized to 64 px, nothing is left"):
        prompted([Sample("x", picture(1, 300), ())], tiny_processor)[0]


def test_mixed_prompts_give_a_batch_of_one_kind_which_the_epoch_decides(tiny_processor):
    data = prompted([sample(3), sample(2), sample(1)], tiny_processor, prompt="box,point", **QUIET)
    kinds = []
    for epoch in range(12):
        data.set_epoch(epoch)
        items = [data[index] for index in range(3)]
        batch = collate(items)
        kind = items[0]["prompt"]
        prompts = {"boxes": {"input_boxes"}, "points": {"input_points", "input_labels"}}
        assert {key for key in batch if key.startswith("input_")} == prompts[kind]
        assert len(batch[f"input_{kind}"]) == 3
        kinds.append(kind)
        assert data[0]["prompt"] == kind
    assert 2 <= kinds.count("boxes") <= 10
