"""Trains models that PyTorch's FSDP2 splits over the processes, and the same in one process; started by torchrun."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import samparser
from samparser.sam import load_sam

PROCESSES, STEPS = 2, 3


def model_of(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return samparser.build(method, load_sam(sys.argv[1])[0]).train()


def masks(model: torch.nn.Module, number: int) -> torch.Tensor:
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(number))
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]]])
    return model(pixel_values=image, input_boxes=boxes, multimask_output=False).pred_masks


def train(model: torch.nn.Module, mine: list[int]) -> torch.nn.Module:
    """Take steps of Adam; of each step's images, this process computes its own."""
    optimizer = torch.optim.Adam([part for part in model.parameters() if part.requires_grad], lr=1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        for image in mine:
            (masks(model, PROCESSES * step + image).square().mean() / len(mine)).backward()
        optimizer.step()
    return model.eval()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for method in sys.argv[2:]:
        whole = train(model_of(method), list(range(PROCESSES)))
        split = model_of(method)
        fully_shard(split, mesh=init_device_mesh("cpu", (PROCESSES,)))
        train(split, [dist.get_rank()])
        gathered = {name: part.full_tensor() for name, part in split.named_parameters() if part.requires_grad}
        expected = {name: part for name, part in whole.named_parameters() if part.requires_grad}
        start = dict(model_of(method).named_parameters())
        moved = sum(not torch.equal(part, start[name]) for name, part in expected.items())
        with torch.no_grad():
            alike = torch.equal(masks(split, 99), masks(whole, 99))
        same = gathered.keys() == expected.keys() and all(
            torch.equal(gathered[name], expected[name]) for name in expected
        )
        if dist.get_rank() == 0:
            print(f"{method}: weights {same}, masks {alike}, moved {moved > 0}", flush=True)
    dist.destroy_process_group()
