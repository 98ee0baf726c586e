import socket

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
    assert [speaking.speaks_first(), speaking.speaks_first()] == [True, False]


def test_a_mistake_that_argparse_finds_is_told_once_too(two_processes, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["train", "--num_train_epochs", "many"])
        assert end.value.code == 2
    assert capsys.readouterr().err.count("invalid float value: 'many'") == 1


def test_where_the_launcher_is_gone_every_process_speaks(two_processes, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setattr(speaking, "_PATIENCE", speaking.timedelta(seconds=0.2))
    assert speaking.speaks_first()
    monkeypatch.delenv("MASTER_ADDR")
    assert speaking.speaks_first()


def test_a_broken_connection_is_told_as_what_it_means(two_processes, monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43424.")
    said = running.explain(error, "train")
    assert said.startswith("Another process of this run has ended: it was killed, or its machine was lost. The same ")
    assert "--resume" in said
    assert "--resume" not in running.explain(error, "evaluate")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert running.explain(error, "train").startswith("[gloo/transport")
    assert speaking.who() == ""
