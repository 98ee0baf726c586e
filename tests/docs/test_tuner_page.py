"""The expansion that the page of the tuner shows runs as it stands there, and trains at the rate that it names."""

import re
from pathlib import Path

import torch

from samparser.tuner import coefficient_parameters
from tests.conftest import make_tiny_sam

PAGE = (Path(__file__).parents[2] / "docs" / "tuner.md").read_text(encoding="utf-8")


def loss(model, image):
    return model(pixel_values=image, input_points=torch.tensor([[[[20.0, 20.0]]]])).pred_masks.square().mean()


def test_the_expansion_of_the_page_runs_and_trains(capsys):
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    section = next(part for part in section if part.startswith("Expansion"))
    code, printed = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", section, flags=re.DOTALL).groups()
    batches = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    names = {"sam": make_tiny_sam(), "batches": batches, "loss": loss}
    exec(code, names)
    assert printed.splitlines()[0].split() == capsys.readouterr().out.splitlines()[1].split()
    model, report = names["model"], names["report"]
    assert [row.terms for row in report.layers] == [64, 64]
    before = float(loss(model, batches[0]).detach())
    optimizer = torch.optim.Adam([p for _, p in coefficient_parameters(model)], lr=1e-2)
    for image in batches:
        optimizer.zero_grad()
        loss(model, image).backward()
        optimizer.step()
    assert float(loss(model, batches[0]).detach()) < before
