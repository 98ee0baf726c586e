"""An experiment whose processes die in the middle of training, for the tests of launchers."""

import json
from pathlib import Path

# Two epochs of six images: the process dies after the first checkpoint.
DIES_AT = 9

_METHOD = '''
"""A method whose process is killed in the middle of training, as with its machine."""

import os
import signal
from pathlib import Path

from samparser.methods import method

PLACE = Path({place!r})


def counting_down(dies, steps):
    calls = []

    def hook(module, arguments):
        died = len(list(PLACE.glob("died-*")))
        calls.append(module.training)
        if sum(calls) == steps and died < dies:
            (PLACE / f"died-{{died}}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


@method("losing", summary="the mask decoder, in a process that dies", trains_upstream=False)
def losing(model, dies=1, steps={steps}):
    """Trains the mask decoder, once its processes have died so many times."""
    model.mask_decoder.requires_grad_(True)
    model.register_forward_pre_hook(counting_down(dies, steps))
    return model
'''


def losing_experiment(content: dict, folder: Path, dies: int = 1) -> Path:
    """Write an experiment file with a row whose process dies so many times, and return where it is."""
    (folder / "losing.py").write_text(_METHOD.format(place=str(folder), steps=DIES_AT))
    content = json.loads(json.dumps(content))
    row = {"method": "losing", "options": {"dies": dies}}
    content |= {"seeds": [0], "methods": [*content["methods"][:2], row], "imports": ["losing.py"]}
    content["training"]["num_train_epochs"] = 2
    del content["search"], content["paper"]
    path = folder / "losing.json"
    path.write_text(json.dumps(content))
    return path


def scores_of(output: Path) -> dict[str, tuple]:
    """Return what the table is made of, but for times: settings, scores, units and trained numbers of each cell."""
    found = {}
    for path in (output / "results").glob("*.json"):
        result = json.loads(path.read_text("utf-8"))
        if "units" in result:
            found[path.stem] = tuple(result[name] for name in ("settings", "rates", "scores", "units", "trained"))
    return found
