"""One lab and one scene for the whole campaign, and a report of what was tried at its end."""

import random

import pytest

from tests.robustness.lab import LONG, SEED, Lab
from tests.robustness.scene import build_scene

_LABS = []


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    _LABS.append(lab)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def scene(tmp_path_factory, tiny_processor, lab):
    return build_scene(tmp_path_factory.mktemp("scene"), tiny_processor, lab)


@pytest.fixture
def rng(request):
    """A generator for each test, by the campaign's seed and the test's name alone."""
    return random.Random(f"{SEED} {request.node.name}")


def pytest_terminal_summary(terminalreporter):
    tallies = [tally for lab in _LABS for tally in lab.tallies]
    if not tallies:
        return
    terminalreporter.section(f"robustness campaign ({'long' if LONG else 'short'}, seed {SEED})")
    terminalreporter.write_line(f"{'group':<52}{'tried':>8}{'failed':>8}")
    for tally in tallies:
        terminalreporter.write_line(f"{tally.group:<52}{tally.tried:>8,}{len(tally.failures):>8,}")
    tried, failed = sum(tally.tried for tally in tallies), sum(len(tally.failures) for tally in tallies)
    terminalreporter.write_line(f"{'all':<52}{tried:>8,}{failed:>8,}")
