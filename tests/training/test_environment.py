import subprocess

from samparser.training.environment import git_state, versions


def git(folder, *words):
    author = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True)


def test_the_state_of_the_repository_is_its_commit_and_the_number_of_changed_files(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "new.txt").touch()
    state = git_state(tmp_path)
    assert state["changed_files"] == 1
    assert len(state["commit"]) == 40


def test_no_program_that_the_repository_names_is_run(tmp_path):
    """A stranger's configuration can name a monitor of the file system, and filters for the content of files."""
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    script, proof = tmp_path.parent / "script.sh", tmp_path.parent / "it-ran"
    script.write_text(f"#!/bin/sh\ntouch {proof}\ncat\n")
    script.chmod(0o755)
    (tmp_path / ".git" / "info" / "attributes").write_text("*.txt filter=their.own\n")
    for key, value in {
        "core.fsmonitor": script,
        "filter.their.own.clean": script,
        "filter.their.own.process": script,
        "filter.their.own.required": "true",
    }.items():
        git(tmp_path, "config", key, str(value))
    (tmp_path / "a.txt").write_text("two")
    state = git_state(tmp_path)
    assert state["changed_files"] == 1
    assert not proof.exists()


def test_the_versions_that_a_result_depends_on_are_there():
    assert {"samparser", "python", "torch", "peft", "transformers", "numpy"} <= versions().keys()
