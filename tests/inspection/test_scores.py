"""Means over images, their errors, and paired differences."""

import math
from statistics import mean, stdev

import pytest
import torch

from samparser.inspection import Evaluation, difference, score_of
from samparser.inspection.scores import from_features
from samparser.scoring import ScoreTable
from samparser.scoring.counts import InstanceScore
from tests.conftest import make_tiny_sam

from .conftest import tuned


def table(*intersections):
    """One instance of 10 pixels an image, so many of them hit and none beside it."""
    rows = [InstanceScore(f"{i}.png", "0", 1, 10, hit, hit) for i, hit in enumerate(intersections)]
    return ScoreTable(rows)


def test_a_score_is_the_mean_over_images_with_its_standard_error():
    score = score_of(table(4, 6, 9))
    ious = [0.4, 0.6, 0.9]
    assert score.miou == pytest.approx(mean(ious))
    assert score.miou_error == pytest.approx(stdev(ious) / math.sqrt(3))
    assert score.images == 3
    assert score.plain()["miou"] == score.miou
    assert score_of(table(4)).plain()["miou_error"] is None


def test_a_difference_is_paired_by_image():
    gained = difference(table(5, 7, 10), table(4, 6, 9))
    assert gained.miou == pytest.approx(0.1)
    assert gained.miou_error == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="different images: 3 and 2"):
        difference(table(5, 7, 10), table(4, 6))


def test_features_give_the_scores_of_images(evaluation, tmp_path):
    model = tuned()
    expected = evaluation.table(model)
    with from_features(evaluation, model, str(tmp_path / "features")) as fed:
        assert isinstance(fed, Evaluation)
        found = fed.table(model)
    assert [row.intersection for row in found.rows] == [row.intersection for row in expected.rows]
    with from_features(evaluation, model, None) as same:
        assert same is evaluation
    assert torch.equal(model.get_base_model().vision_encoder.pos_embed, make_tiny_sam().vision_encoder.pos_embed)


def test_adapters_before_the_neck_cannot_be_scored_from_features(evaluation, tmp_path):
    model = tuned(target_modules=["vision_encoder.layers.0.attn.proj"])
    with (
        pytest.raises(ValueError, match=r"has adapters on 1 part of the image encoder"),
        from_features(evaluation, model.requires_grad_(False), str(tmp_path / "features")),
    ):
        pass
