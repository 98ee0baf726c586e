"""The figures of a test as they are saved."""

import pytest


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures as they are saved, to read what was drawn."""
    from matplotlib.figure import Figure

    saved = []
    original = Figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved
