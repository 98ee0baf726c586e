from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samparser.compare import ExperimentError
from samparser.compare.plan import Cell, trains_nothing
from samparser.compare.workspace import Workspace, hold_out

from ..conftest import make_tiny_sam


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_held_out_images_and_the_others_are_all_images_once(count, part, seed):
    names = [f"{number}.png" for number in range(count)]
    kept, held_out = hold_out(names, part, seed)
    assert sorted(kept + held_out) == list(range(count))
    assert len(held_out) == max(1, round(part * count))
    assert hold_out(names, part, seed) == (kept, held_out)


def test_whole_volumes_are_held_out_where_asked():
    names = [f"case_{case}#{number:04d}" for case in range(4) for number in range(3)]
    kept, held_out = hold_out(names, 0.25, 0, by_volume=True)
    assert len(held_out) == 3
    assert len({names[index][:6] for index in held_out}) == 1
    assert len({names[index][:6] for index in kept}) == 3


def few_images(experiment, count):
    row = replace(experiment.row("decoder"), train_images=count)
    return replace(experiment, methods=(experiment.row("zero-shot"), row))


def test_a_row_with_few_images_draws_them_by_the_seed(experiment, data_root, tmp_path):
    space = Workspace(few_images(experiment, 2), data_root, tmp_path)
    drawn = {seed: space.sets_of(Cell("toy", "decoder", "seed", seed))[0].names for seed in range(6)}
    assert {len(names) for names in drawn.values()} == {2}
    assert len({tuple(names) for names in drawn.values()}) > 1
    assert drawn[0] == space.sets_of(Cell("toy", "decoder", "seed", 0))[0].names


def test_more_images_than_there_are_is_refused_but_not_in_a_trial_with_few(experiment, data_root, tmp_path):
    cell = Cell("toy", "decoder", "seed", 0)
    with pytest.raises(ExperimentError, match="trains on 7 images, but toy has 6"):
        Workspace(few_images(experiment, 7), data_root, tmp_path).sets_of(cell)
    assert len(Workspace(few_images(experiment, 7), data_root, tmp_path, limit=2).sets_of(cell)[0]) == 2


def test_one_image_cannot_be_held_out_of_one(experiment, data_root, tmp_path):
    with pytest.raises(ExperimentError, match="1 training images, too few to hold out 50%"):
        Workspace(experiment, data_root, tmp_path, limit=1).sets_of(Cell("toy", "decoder", "trial", 0))


def test_rows_that_train_before_the_neck_or_were_told_not_to_are_not_cached(experiment, data_root, tmp_path):
    lora = replace(experiment.row("decoder"), method="lora", name="lora")
    experiment = replace(experiment, methods=(*experiment.methods, lora))
    space = Workspace(experiment, data_root, tmp_path)
    cells = [Cell("toy", name, "seed", 0) for name in ("decoder", "samparser", "lora")]
    assert [space.cached(cell) for cell in cells] == [True, True, False]
    uncached = replace(experiment, data=(replace(experiment.data[0], cache=False),))
    assert not Workspace(uncached, data_root, tmp_path).cached(cells[0])


def test_only_the_zero_shot_row_trains_nothing(experiment):
    model = make_tiny_sam()
    assert [row.name for row in experiment.methods if trains_nothing(row, model)] == ["zero-shot"]
