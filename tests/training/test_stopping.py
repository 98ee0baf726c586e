import os
import signal

import pytest

from samparser.training import Stopped
from samparser.training.stopping import stoppable


@pytest.fixture(autouse=True)
def ctrl_c():
    """Lets SIGINT through where it is ignored, as in the background jobs of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stopped_by(number, cleaned):
    try:
        os.kill(os.getpid(), number)
        signal.pause()
    finally:
        cleaned.append(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_the_block_with_a_sentence_after_it_has_cleaned_up(number, tmp_path):
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)
    said = rf"Training was stopped \({number.name}\)\. The same command with --resume goes on .* in {tmp_path}\."
    with pytest.raises(Stopped, match=said) as stop, stoppable(tmp_path):
        stopped_by(number, cleaned)
    assert cleaned == [number]
    assert stop.value.number == number
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_the_program_has_set_stays(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with stoppable(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"]
