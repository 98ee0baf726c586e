"""Time and memory on a machine that does other things too: alternating runs, ratios within a round, medians."""

import gc
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

Run = Callable[[], object]


_chosen = torch.device("cpu")


def use_device(name: str) -> None:
    """Measures on this device from now on.

    Raises:
        ValueError: torch has no such device here.
    """
    global _chosen
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {name}: torch {torch.__version__} cannot use it here ({str(error).splitlines()[0]}). "
            "Leave --device out to measure on the CPU."
        ) from error
    _chosen = torch.device(name)


def device() -> torch.device:
    """Where models and inputs of the benchmark are."""
    return _chosen


def now() -> float:
    """A clock: of the process's own processor time with one thread, of the wall with several or on an accelerator.

    An accelerator has done all its work by then.
    """
    if _chosen.type != "cpu":
        torch.accelerator.synchronize(_chosen)
    return time.process_time() if _processor_time() else time.perf_counter()


def _processor_time() -> bool:
    return _chosen.type == "cpu" and torch.get_num_threads() == 1


@dataclass(frozen=True)
class Timing:
    """What alternating runs of one candidate gave.

    ``ratio`` is the median over the rounds of its time over the baseline's in the same round, ``low`` and ``high`` the
    quartiles of that; ``seconds`` is its median time.
    """

    ratio: float
    low: float
    high: float
    seconds: float


def alternate(
    runs: dict[str, Run], rounds: int, *, baseline: str, inner: int = 1, warm: bool = True
) -> dict[str, Timing]:
    """Runs every candidate once per round, in turn, and compares within each round: slow drifts of the machine cancel.

    Args:
        runs: The candidates.
        rounds: How often.
        baseline: Name of the candidate that the others are divided by.
        inner: Runs of a candidate for one timing, for short ones.
        warm: Run each once before anything counts.
    """
    for run in runs.values() if warm else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for _ in range(rounds):
        # Another order each time: what a run leaves in memory and caches meets another one.
        random.shuffle(names)
        for name in names:
            gc.collect()
            start = now()
            for _ in range(inner):
                runs[name]()
            seconds[name].append((now() - start) / inner)
    timings = {}
    for name, times in seconds.items():
        ratios = [mine / base for mine, base in zip(times, seconds[baseline], strict=True)]
        low, middle, high = quartiles(ratios)
        timings[name] = Timing(middle, low, high, statistics.median(times))
    return timings


def repeats(run: Run, rounds: int, seconds: float = 0.2) -> int:
    """How many runs take at least so long together; one where there are too few rounds for a measurement."""
    if rounds < 3:
        return 1
    run()
    start = now()
    run()
    return max(1, math.ceil(seconds / max(1e-6, now() - start)))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_bytes(run: Run) -> int:
    """The most bytes of tensors that ``run`` held at one time beyond those that were there before.

    On the CPU they are summed over the allocations that torch's profiler records, so they do not depend on the
    allocator or the machine; an accelerator's allocator counts them itself, rounded up to its blocks.
    """
    if _chosen.type != "cpu":
        run()  # handles and workspaces that stay
        torch.accelerator.reset_peak_memory_stats(_chosen)
        before = torch.accelerator.memory_allocated(_chosen)
        run()
        return torch.accelerator.max_memory_allocated(_chosen) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(timing: Timing) -> str:
    """A ratio with its quartiles."""
    return f"{timing.ratio:.2f} ({timing.low:.2f}-{timing.high:.2f})"


def machine() -> str:
    """Processor, threads and versions: what the figures depend on."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # Not Linux: the platform's own name has to do.
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "peft", "transformers", "samparser"))
    clock = "processor time" if _processor_time() else "wall time"
    if _chosen.type == "cuda":
        name = f"{torch.cuda.get_device_name(_chosen)} with {name}"
    elif _chosen.type != "cpu":
        name = f"{_chosen} with {name}"
    return f"{name}, {torch.get_num_threads()} threads, {clock}, Python {platform.python_version()}, {versions}"
