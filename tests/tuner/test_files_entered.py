"""How many files somebody has to open who wants to know how an adapter is attached, saved and loaded."""

import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

import samparser.tuner
from samparser import SVDCoefficientConfig
from tests.tuner.models import make

ROOM = Path(samparser.tuner.__file__).parent


def test_attaching_saving_and_loading_an_adapter_enters_at_most_ten_files(tmp_path):
    entered = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == ROOM and frame.f_code.co_name != "<module>":
            entered.add(path.name)

    sys.setprofile(note)
    try:
        model = get_peft_model(make("ConvNet"), SVDCoefficientConfig(target_modules=["neck"]))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make("ConvNet"), tmp_path)
    finally:
        sys.setprofile(None)
    assert {"config.py", "layer.py", "model.py"} < entered
    assert len(entered) <= 10, sorted(entered)
    # It was a whole run: what was loaded is what was saved.
    for name, p in model.named_parameters():
        assert torch.equal(p, loaded.get_parameter(name))


def test_the_room_has_at_most_twenty_two_files_of_at_most_four_hundred_lines():
    lines = {path.name: len(path.read_text().splitlines()) for path in ROOM.glob("*.py")}
    assert len(lines) <= 22
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
