"""Where a training step from cached features spends its time."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace

import torch

from samparser.sam import default_processor

from .measure import Run, alternate, cell, device, peak_bytes, table
from .models import Size, make_sam, make_samples
from .steps import MIB, cached_step, coefficients_and_decoder

_LOSSES = {"at input size": False, "at the logits' size": True}


def measure_where_time_goes(size: Size, rounds: int, top: int = 12) -> str:
    """The operations with the largest share of a step's time, and what the size of the loss has to do with it."""
    # How deep the encoder is does not matter: it is aside when the step runs.
    shallow = replace(size, layers=1)
    processor = default_processor(make_sam(shallow))
    (sample,) = make_samples(1, size.pixels)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, small in _LOSSES.items():
            model = coefficients_and_decoder(make_sam(shallow)).train()
            runs[name] = cached_step(stack, model, processor, sample, folder, small_loss=small)
        peaks = {name: peak_bytes(run) / MIB for name, run in runs.items()}
        timings = alternate(runs, rounds, baseline=next(iter(_LOSSES)))
        activities, own_time = [torch.profiler.ProfilerActivity.CPU], "self_cpu_time_total"
        if device().type == "cuda":
            activities, own_time = [*activities, torch.profiler.ProfilerActivity.CUDA], "self_device_time_total"
        with torch.profiler.profile(activities=activities) as profile:
            runs["at input size"]()
    shares = [(getattr(event, own_time), event.key, event.count) for event in profile.key_averages()]
    whole = sum(time for time, _, _ in shares)
    largest = sorted(shares, key=lambda share: -share[0])[:top]
    rows = [[f"`{name}`", f"{time / whole:.1%}", str(count)] for time, name, count in largest]
    sizes = [[name, cell(t), f"{t.seconds:.3g} s", f"{peaks[name]:.0f} MiB"] for name, t in timings.items()]
    return (
        f"{size.name}, one box, neck and decoder from cached tokens:\n\n"
        f"{table(['operation', 'share', 'calls'], rows)}\n\n"
        f"{table(['loss', 'time / at input size', 'time', 'peak memory'], sizes)}"
    )
