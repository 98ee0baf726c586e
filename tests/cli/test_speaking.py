import socket
import threading

import pytest
import torch.distributed as dist

from samparser.cli import main, running, speaking


@pytest.fixture
def two_processes(monkeypatch):
    """The environment of one of two processes, with the store of their launcher."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", store.port)):
        monkeypatch.setenv(name, str(value))
    return store


def test_the_first_process_to_fail_says_why_and_the_others_say_nothing(two_processes, capsys, monkeypatch):
    for _ in range(3):
        assert main(["evaluate", "nowhere", "--data", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.count("samparser evaluate: error: ") == 1
    assert f"(process 1 of 2, on {socket.gethostname()}; it ends the others)" in said
    # The launcher has started all processes anew.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for text in ("first", "second"):
        speaking.say(text)
    assert capsys.readouterr().err == "first\n"


def test_who_is_silent_stays_until_the_first_has_spoken(two_processes, monkeypatch):
    assert two_processes.add("samparser/0/ended", 1) == 1  # another process, which has not spoken yet
    silent = threading.Thread(target=speaking.say, args=("a consequence",), daemon=True)
    silent.start()
    silent.join(0.3)
    assert silent.is_alive()
    two_processes.set("samparser/0/said", "yes")
    silent.join(5)
    assert not silent.is_alive()


def test_a_mistake_that_argparse_finds_is_told_once_too(two_processes, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["train", "--num_train_epochs", "many"])
        assert end.value.code == 2
    assert capsys.readouterr().err.count("invalid float value: 'many'") == 1


def test_where_the_launcher_is_gone_every_process_speaks(two_processes, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setattr(speaking, "_PATIENCE", speaking.timedelta(seconds=0.2))
    speaking.say("one")
    monkeypatch.delenv("MASTER_ADDR")
    speaking.say("another")
    assert capsys.readouterr().err == "one\nanother\n"


def test_a_broken_connection_is_told_as_what_it_means(two_processes, monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43424.")
    said = running.explain(error, "train")
    assert said.startswith("Another process of this run has ended: it was killed, or its machine was lost. The same ")
    assert "--resume" in said
    assert "--resume" not in running.explain(error, "evaluate")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert running.explain(error, "train").startswith("[gloo/transport")
    assert speaking.who() == ""
