import pickle
from io import BytesIO
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from samparser.data import DataSettings, open_dataset
from samparser.data.columns import ChosenNames, Column, Texts
from tests.data.files import picture, polygon, save, write_coco


@given(st.lists(st.text(max_size=5), max_size=6), st.data())
def test_texts_are_what_a_list_of_them_is(texts, data):
    packed = Texts(texts)
    assert packed == texts
    assert texts == packed
    assert (
        list(packed) == [packed[n] for n in range(len(packed))] == [packed[n - len(texts)] for n in range(len(texts))]
    )
    assert packed[1:-1] == texts[1:-1]
    assert packed + texts == texts + packed == [*texts, *texts]
    assert packed != [*texts, "x"]
    assert repr(packed) == repr(texts)
    chosen = data.draw(st.permutations(range(len(texts))))
    names = ChosenNames([texts, packed], Column(np.array(chosen, dtype=int) % 2), Column(np.array(chosen, dtype=int)))
    assert names == [names[n] for n in range(len(names))] == [texts[n] for n in chosen]


def test_texts_that_are_not_there_are_refused():
    with pytest.raises(IndexError, match=r"Text 2 of 2\."):
        Texts("ab")[2]


def test_a_column_keeps_its_numbers_when_its_memory_moves():
    column = Column(np.arange(6)[::2])
    column._tensor.share_memory_()
    assert column.values.tolist() == [0, 2, 4]
    assert pickle.loads(pickle.dumps(column)).values.tolist() == [0, 2, 4]


@pytest.fixture
def by_name():
    """Shared memory with a name, which can be opened in the same process again."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.usefixtures("by_name")
def test_a_spawned_worker_gets_handles_and_no_copy_of_the_index(tmp_path):
    images = [(n, f"{n:03d}.png") for n in range(300)]
    for _, name in images:
        save(picture(), tmp_path / "images" / name)
    rows = [{"image_id": n % 300, "segmentation": polygon(1, 1, 9, 9)} for n in range(3000)]
    write_coco(tmp_path / "annotations.json", images, rows)
    dataset = open_dataset(DataSettings(data=str(tmp_path)), "train")
    sent = BytesIO()
    ForkingPickler(sent).dump(dataset)
    copied = pickle.dumps(dataset)
    assert len(sent.getvalue()) < 5_000 < 100_000 < len(copied)
    for arrived in (pickle.loads(sent.getvalue()), pickle.loads(copied)):
        assert arrived.names == dataset.names
        assert [i.box for i in arrived[7].instances] == [i.box for i in dataset[7].instances] == [(1, 1, 9, 9)] * 10
