"""Tasks of Ray, on an instance of this machine: as on a cluster, but for the machines."""

import os

import pytest

from samparser.compare import CellError, ExperimentError, compare, load_experiment
from samparser.compare.on_ray import RayLauncher
from samparser.compare.tasks import Place

from .losing import losing_experiment, scores_of

ray = pytest.importorskip("ray", reason="needs ray, of the extra 'cluster'")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")


@pytest.fixture(scope="module", autouse=True)
def instance():
    """Ray for all tests of this file, as starting it takes seconds."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_task_whose_process_is_killed_goes_on_and_the_table_is_that_of_one_process(content, data_root, tmp_path):
    experiment, lines = load_experiment(losing_experiment(content, tmp_path)), []
    jobs, here = tmp_path / "jobs", tmp_path / "here"
    given = {"data_root": data_root, "cost": False}
    report = compare(experiment, output=jobs, launcher="ray", say=lines.append, **given)
    lost = [line for line in lines if "its process or its machine was lost" in line]
    assert len(lost) == 1
    assert lost[0].startswith("toy, losing, seed 0: ")
    assert lost[0].endswith("It is started again (2 of 3 tries).")
    expected = compare(experiment, output=here, say=lambda line: None, **given)
    assert len(scores_of(here)) == 3
    assert scores_of(jobs) == scores_of(here)
    for row in ("zero-shot", "decoder", "losing"):
        assert report.columns[0].score(row, "miou") == expected.columns[0].score(row, "miou")
    # An instance that somebody else started is left alone.
    assert ray.is_initialized()


def test_an_error_of_a_cell_is_told_as_without_a_launcher_and_is_not_tried_again(content, data_root, tmp_path):
    path = losing_experiment(content, tmp_path)
    (tmp_path / "losing.py").write_text(
        (tmp_path / "losing.py").read_text().replace("os.kill(os.getpid(), signal.SIGKILL)", 'raise ValueError("dark")')
    )
    lines = []
    with pytest.raises(CellError, match=r"(?s)toy, losing, seed 0 failed: ValueError: dark.*losing--seed0\.log"):
        compare(
            load_experiment(path),
            output=tmp_path / "out",
            data_root=data_root,
            launcher="ray",
            cost=False,
            say=lines.append,
        )
    assert sorted(scores_of(tmp_path / "out")) == ["toy--decoder--seed0", "toy--zero-shot--once"]
    assert not [line for line in lines if "tries" in line]


def test_what_the_launcher_cannot_be_told_is_refused_with_what_is_possible(experiment, data_root, tmp_path):
    place = Place(experiment, data_root, tmp_path, None)
    for options, said in (
        ({"partition": "gpu"}, "Ray cannot start tasks with the launcher_options.*partition"),
        ({"num_gpus": "all"}, "Ray cannot start tasks with the launcher_options"),
        ({"num_cpus": 0}, "num_cpus is 0; it must be a whole number of at least 1"),
        ({"max_retries": 3}, "max_retries is the comparison's own; tries says how often"),
    ):
        with pytest.raises(ExperimentError, match=said):
            RayLauncher(place, None, options)
