"""Compile steps of one family from features, and print how far loss and gradients are from those of plain ones.

In a process of its own: the shapes that the test run checks, with beartype, are nothing that torch can compile.
"""

import json
import sys

import jaxtyping
import torch

COUNTS = [[1, 3], [4, 2], [1, 5], [3, 0]]


def main(model_type: str) -> None:
    # Before `tests.conftest` asks for the checks of shapes.
    jaxtyping.install_import_hook = lambda *_, **__: None
    from samparser.prompts import collate
    from samparser.training.trainer import batch_loss, mask_logits
    from tests.training.test_batches import SETTINGS, fed, gradients, items_of, tuned

    model, graphs = tuned(model_type, torch.float32), []

    def counting(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=counting, fullgraph=True)
    worst = []
    with fed(model, torch.float32):
        for counts in COUNTS:
            batch, found = collate(items_of(model, counts, dtype=torch.float32)), []
            for net in (model, compiled):
                model.zero_grad()
                loss = batch_loss(mask_logits(net, batch), batch, SETTINGS).total
                loss.backward()
                found.append({"loss": loss.detach(), **gradients(model)})
            plain, other = found
            largest = max(float(gradient.abs().max()) for gradient in plain.values())
            worst.append(max(float((plain[name] - other[name]).abs().max()) for name in plain) / largest)
    print(json.dumps({"graphs": len(graphs), "worst": worst}))


if __name__ == "__main__":
    main(sys.argv[1])
