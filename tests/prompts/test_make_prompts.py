"""Prompts of instances: what they are, in which frame, and that training and scoring get the same ones."""

import numpy as np
import pytest

from samparser.data import Instance, Sample
from samparser.prompts import PromptedDataset, PromptSettings, make_prompts
from samparser.prompts.coordinates import jitter_boxes
from samparser.sam import Padded
from samparser.training import EvalSettings
from samparser.training.evaluation import prompts_for
from tests.data.files import picture, rectangle

SIZE = (48, 96)
RESIZED = (32, 64)


def instances(count=3):
    masks = [rectangle(2 + 20 * n, 20, 14 + 20 * n, 30, *SIZE) for n in range(count)]
    return tuple(Instance.from_mask(mask, 1, str(n)) for n, mask in enumerate(masks))


def rng():
    return np.random.default_rng(7)


def test_boxes_without_jitter_are_those_of_the_instances_in_either_frame():
    quiet = PromptSettings(jitter_max=0.0)
    boxes = make_prompts(instances(), SIZE, quiet, rng())["boxes"]
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[2, 20, 14, 30], [22, 20, 34, 30], [42, 20, 54, 30]]
    resized = make_prompts(instances(), SIZE, quiet, rng(), frame=Padded(64))["boxes"]
    np.testing.assert_allclose(resized, boxes * 2 / 3, rtol=1e-6)


def test_jitter_is_that_of_jitter_boxes_in_the_frame_that_was_asked_for():
    tight = np.array([instance.box for instance in instances()], dtype=np.float32)
    original = make_prompts(instances(), SIZE, PromptSettings(jitter_max=5.0), rng())["boxes"]
    assert np.array_equal(original, jitter_boxes(tight, SIZE, 0, 5, rng()))
    settings = PromptSettings(jitter_max=5.0, jitter_frame="input", jitter_direction="both", jitter_max_fraction=0.2)
    moved = make_prompts(instances(), SIZE, settings, rng(), frame=Padded(64))["boxes"]
    tight = Padded(64).to_input(tight, SIZE)
    assert np.array_equal(moved, jitter_boxes(tight, RESIZED, 0, 5, rng(), direction="both", max_fraction=0.2))
    with pytest.raises(ValueError, match="jitter_frame is input, so the model's input frame must be given"):
        make_prompts(instances(), SIZE, settings, rng())


def test_mixed_prompts_are_those_of_either_kind():
    mixed = make_prompts(instances(), SIZE, PromptSettings(prompt="box,point", jitter_max=5.0, points=2), rng())
    boxes = make_prompts(instances(), SIZE, PromptSettings(jitter_max=5.0), rng())["boxes"]
    assert np.array_equal(mixed["boxes"], boxes)
    first = make_prompts(instances(), SIZE, PromptSettings(prompt="point"), rng())["points"]
    assert np.array_equal(mixed["points"][:, :1], first)
    assert mixed["points"].shape == (3, 2, 2)


def test_points_lie_on_their_instance_and_the_first_one_deepest():
    settings = PromptSettings(prompt="point", points=3)
    points = make_prompts(instances(), SIZE, settings, rng())["points"]
    assert points.shape == (3, 3, 2)
    for instance, own in zip(instances(), points, strict=True):
        x0, y0, x1, y1 = instance.box
        assert ((own > [x0, y0]) & (own < [x1, y1])).all()
        # 12 x 10 px: the first of the pixels five from the border is (4, 4)
        assert own[0].tolist() == [x0 + 4.5, y0 + 4.5]
    resized = make_prompts(instances(), SIZE, settings, rng(), frame=Padded(64))["points"]
    np.testing.assert_allclose(resized, points * 2 / 3, rtol=1e-6)


def test_no_instance_gives_no_prompt():
    assert make_prompts((), SIZE, PromptSettings(), rng())["boxes"].shape == (0, 4)
    assert make_prompts((), SIZE, PromptSettings(prompt="point", points=2), rng())["points"].shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("training", "scoring"),
    [
        (PromptSettings(jitter_max=0.0), EvalSettings()),
        (PromptSettings(jitter_max=6.0), EvalSettings(eval_jitter=6)),
        (PromptSettings(prompt="point", points=3), EvalSettings(eval_prompt="point", eval_points=3)),
        (
            PromptSettings(prompt="point", points=2, point_choice="random"),
            EvalSettings(eval_prompt="point", eval_points=2, eval_point_choice="random"),
        ),
    ],
    ids=["tight", "jitter", "points", "random points"],
)
def test_training_and_scoring_prompt_alike(tiny_processor, training, scoring, monkeypatch):
    sample = Sample("x", picture(*SIZE), instances())
    # One generator for both: in use, training draws by (seed, epoch, index) and scoring by (seed, index).
    monkeypatch.setattr(np.random, "default_rng", lambda _: np.random.Generator(np.random.PCG64(1)))
    ((name, prompts),) = prompts_for(sample, 0, scoring).items()
    item = PromptedDataset([sample], tiny_processor, training)[0]
    assert np.array_equal(item[f"input_{name}"].numpy(), Padded(64).to_input(prompts, SIZE))
