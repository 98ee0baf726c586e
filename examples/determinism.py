"""Does an adapter that carries only coefficients give the same weight on another machine?

An adapter's files hold p and p0; the bases U and Vh are recomputed from the base weight wherever it is loaded. This
script builds weights that make this hard, changes their coefficients, and recomputes the bases the way another machine
might: another number of threads, the transposed matrix, other LAPACK drivers. Two more ways, the eigen-decomposition of
the Gram matrix and float32, show what samparser avoids. It prints the error of the weight's change, relative to that
change, with and without the tying of coefficients that cannot be told apart; then the error when the base was rounded
to half precision in between.

    python examples/determinism.py
    python examples/determinism.py --shapes 256x768 256x2304 768x768 --output determinism.json

Two real machines are compared by a file with weights, coefficients and changes, 160 MB for the default shapes:

    python examples/determinism.py --save machine-a.safetensors      # here
    python examples/determinism.py --check machine-a.safetensors     # there: prints the errors of its own changes

With scipy installed (`pip install scipy`) two more LAPACK drivers are tried. docs/determinism.md
explains the tables.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HfArgumentParser

from samparser.tuner.factors import Factors, coefficient_groups, factorize, free_coefficients, tie_change, weight_change

Way = Callable[[Tensor], Factors]

AVOIDED = ("Gram", "float32")
"""Ways that samparser does not go, for comparison."""


@dataclass(frozen=True)
class Arguments:
    """What to measure and where to write it."""

    shapes: list[str] = field(
        default_factory=lambda: ["256x768", "256x2304"],
        metadata={"help": "Folded weights, out x fan_in. The default: the two convolutions of SAM ViT-B's neck."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the changes."})
    output: str | None = field(default=None, metadata={"help": "Also write all the figures to this JSON file."})
    save: str | None = field(default=None, metadata={"help": "Write this machine's changes to this file, and stop."})
    check: str | None = field(default=None, metadata={"help": "Compare with the changes in this file, and stop."})


def random_orthonormal(rows: int, columns: int) -> Tensor:
    """Orthonormal columns in random directions, in float64."""
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))[0]


def with_spectrum(shape: tuple[int, int], spectrum: Tensor) -> Tensor:
    """A float32 weight with this spectrum, as far as float32 can hold it."""
    out, fan_in = shape
    u, v = random_orthonormal(out, len(spectrum)), random_orthonormal(fan_in, len(spectrum))
    return ((u * spectrum) @ v.T).float()


def clustered(shape: tuple[int, int], gap: float) -> Tensor:
    """Up to twenty singular values in the middle that are this far apart, in float64 so that the gaps are there."""
    rank = min(shape)
    spectrum = torch.linspace(1, 0.05, rank, dtype=torch.float64)
    middle = slice(rank // 2, rank // 2 + min(20, rank // 4))
    spectrum[middle] = spectrum[rank // 2] - gap * torch.arange(len(spectrum[middle]), dtype=torch.float64)
    u, v = random_orthonormal(shape[0], rank), random_orthonormal(shape[1], rank)
    return (u * spectrum) @ v.T


def block(shape: tuple[int, int], repeats: int) -> Tensor:
    """The same small block several times on the diagonal: every singular value repeated exactly, in float32 too."""
    out, fan_in = shape[0] // repeats, shape[1] // repeats
    weight = torch.zeros(shape)
    small = torch.randn(out, fan_in) / fan_in**0.5
    for i in range(repeats):
        weight[i * out : (i + 1) * out, i * fan_in : (i + 1) * fan_in] = small
    return weight


def hard_weights(shape: tuple[int, int]) -> dict[str, Tensor]:
    """Weights by what is hard about them, the easy ones first."""
    rank = min(shape)
    gaussian = torch.randn(shape) / shape[1] ** 0.5
    decaying = with_spectrum(shape, torch.logspace(0, -6, rank, dtype=torch.float64))
    dead, duplicated, twins = gaussian.clone(), gaussian.clone(), gaussian.clone()
    dead[: min(20, rank // 4)] = 0
    duplicated[1::2] = duplicated[::2]
    twins[:, 1] = twins[:, 0]
    low_rank = torch.randn(shape[0], rank // 2) @ torch.randn(rank // 2, shape[1]) / shape[1]
    return {
        "gaussian": gaussian,
        "spectrum from 1 to 1e-6": decaying,
        "gaps of 1e-6": clustered(shape, 1e-6).float(),
        "gaps of 1e-8, float64 weight": clustered(shape, 1e-8),
        "gaps of 1e-10, float64 weight": clustered(shape, 1e-10),
        "orthogonal, rounded": with_spectrum(shape, torch.ones(rank, dtype=torch.float64)),
        "identity": torch.eye(*shape),
        "every value four times": block(shape, 4),
        "dead output channels": dead,
        "duplicated output channels": duplicated,
        "two equal input channels": twins,
        "half the rank, rounded": low_rank,
        "half the rank, exact": torch.cat([gaussian[:, : rank // 2], torch.zeros(shape[0], shape[1] - rank // 2)], 1),
        "one rank": torch.ones(shape),
        "zero": torch.zeros(shape),
    }


def as_stored(u: Tensor, p: Tensor, vh: Tensor, weight: Tensor) -> Factors:
    """Factors rounded as `factorize` rounds them."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Factors(u.to(dtype), p.to(dtype), vh.to(dtype))


def transposed(weight: Tensor) -> Factors:
    """LAPACK sees the other orientation than in `factorize`."""
    if weight.shape[0] >= weight.shape[1]:
        v, p, uh = torch.linalg.svd(weight.double().T, full_matrices=False)
        return as_stored(uh.T, p, v.T, weight)
    return as_stored(*torch.linalg.svd(weight.double(), full_matrices=False), weight)


def gram(weight: Tensor) -> Factors:
    """Eigenvectors of the smaller Gram matrix; the other basis by projecting, completed where the value is zero."""
    if weight.shape[0] > weight.shape[1]:
        u, p, vh = gram(weight.T)
        return Factors(vh.T, p, u.T)
    wide = weight.double()
    squares, u = torch.linalg.eigh(wide @ wide.T)
    p, u = squares.flip(0).clamp(min=0).sqrt(), u.flip(1)
    vh = u.T @ wide / p.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    unknown = p <= 1e-8 * p[0]
    basis = torch.linalg.qr(torch.cat([vh[~unknown].T, torch.randn(wide.shape[1], int(unknown.sum())).double()], 1))[0]
    vh[unknown] = basis.T[int((~unknown).sum()) :]
    return as_stored(u, p, vh, weight)


def other_threads(weight: Tensor) -> Factors:
    """`factorize` itself with two threads instead of one, or one instead of several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        return factorize(weight)
    finally:
        torch.set_num_threads(before)


def in_float32(weight: Tensor) -> Factors:
    """The decomposition without the detour over float64."""
    return as_stored(*torch.linalg.svd(weight.float(), full_matrices=False), weight)


def scipy_driver(name: str) -> Way:
    """One of scipy's LAPACK drivers, from another build of LAPACK than torch's."""
    import scipy.linalg

    def way(weight: Tensor) -> Factors:
        u, p, vh = scipy.linalg.svd(weight.double().numpy(), full_matrices=False, lapack_driver=name)
        return as_stored(torch.from_numpy(u), torch.from_numpy(p), torch.from_numpy(vh), weight)

    return way


def ways() -> dict[str, Way]:
    """How another machine might find the bases, and the ways in `AVOIDED`."""
    found: dict[str, Way] = {"threads": other_threads, "transposed": transposed}
    try:
        found |= {f"scipy {name}": scipy_driver(name) for name in ("gesdd", "gesvd")}
    except ImportError:
        print("scipy is not installed: its two LAPACK drivers are left out.")
    return found | {"Gram": gram, "float32": in_float32}


class Errors(NamedTuple):
    """Relative errors: of the weight's change, of the output's change, of the adapted output."""

    change: float
    output_change: float
    output: float


def relative(wrong: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm; two zeros agree."""
    difference, size = (wrong - right).norm().item(), right.norm().item()
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def errors(weight: Tensor, here: Factors, there: Factors, delta: Tensor, x: Tensor) -> Errors:
    """Errors of the bases found there against those found here, for one change of the coefficients."""
    right, wrong = (weight_change(f.u, delta, f.vh).double() for f in (here, there))
    y, right_y, wrong_y = (x @ matrix.T for matrix in (weight.double(), right, wrong))
    return Errors(relative(wrong, right), relative(wrong_y, right_y), relative(y + wrong_y, y + right_y))


def measure(weight: Tensor, recompute: dict[str, Way]) -> dict[str, dict[str, Errors]]:
    """Errors of one weight: {"free" | "tied": {way: errors}}.

    Every coefficient moves by 5 % of the largest singular value at random, those of dead directions too: more than
    training does to them, since they start from zero.
    """
    here = factorize(weight)
    delta = 0.05 * max(here.p[0].item(), 1e-3) * torch.randn(len(here.p), dtype=here.p.dtype)
    tied = tie_change(delta, coefficient_groups(here.p))
    x = torch.randn(64, weight.shape[1], dtype=torch.float64)
    found = {name: way(weight) for name, way in recompute.items()}
    return {
        kind: {name: errors(weight, here, there, change, x) for name, there in found.items()}
        for kind, change in (("free", delta), ("tied", tied))
    }


def worst(row: dict[str, Errors]) -> dict[str, float]:
    """The largest of each kind of error over the ways that samparser may have to live with."""
    kept = [e for way, e in row.items() if way not in AVOIDED]
    return {field: max(getattr(e, field) for e in kept) for field in Errors._fields}


def rounded_base(shape: tuple[int, int]) -> dict[str, float]:
    """Error of the change when an adapter of a float32 base meets that base rounded to half precision."""
    weight = torch.randn(shape) / shape[1] ** 0.5
    found = {}
    spectra = {
        "gaussian": None,
        "spectrum from 1 to 1e-3": torch.logspace(0, -3, min(shape), dtype=torch.float64),
    }
    for spread, spectrum in spectra.items():
        base = weight if spectrum is None else with_spectrum(shape, spectrum)
        here = factorize(base)
        p = here.p * (1 + 0.1 * torch.randn(len(here.p)))
        for dtype in (torch.bfloat16, torch.float16):
            there = factorize(base.to(dtype).float())
            name = f"{spread}, {str(dtype).removeprefix('torch.')}"
            delta = p - here.p
            found[name] = relative(
                weight_change(there.u, delta, there.vh).double(), weight_change(here.u, delta, here.vh).double()
            )
    return found


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one line for each row, with one digit: the exponent is what matters."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 2
    print(f"\n{title}\n\n{'':{width}}" + "".join(f"{c:>15}" for c in columns))
    for name, row in rows.items():
        print(f"{name:{width}}" + "".join(f"{row[c]:15.0e}" if row[c] else f"{'0':>15}" for c in columns))


def save_changes(arguments: Arguments, path: str) -> None:
    """Write weights, p0, changes of the coefficients and of the weight to a file, for `check_changes` elsewhere."""
    tensors = {}
    for text in arguments.shapes:
        torch.manual_seed(arguments.seed)
        for name, weight in hard_weights(read_shape(text)).items():
            u, p0, vh = factorize(weight)
            delta = 0.05 * max(p0[0].item(), 1e-3) * torch.randn(len(p0), dtype=p0.dtype)
            tied = tie_change(delta, coefficient_groups(p0))
            changes = {"free": weight_change(u, delta, vh), "tied": weight_change(u, tied, vh)}
            parts = {"weight": weight, "p0": p0, "delta": delta, **changes}
            tensors |= {f"{text} {name}|{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, path)
    print(f"Wrote {len(tensors) // 5} weights and their changes to {path}.")


def check_changes(path: str) -> None:
    """Form the changes in the file again, from its weights, p0 and coefficients alone, and print the errors."""
    tensors = load_file(path)
    rows = {}
    for name in dict.fromkeys(key.split("|")[0] for key in tensors):
        weight, p0, delta, free, tied = (
            tensors[f"{name}|{part}"] for part in ("weight", "p0", "delta", "free", "tied")
        )
        u, _, vh = factorize(weight)
        groups = coefficient_groups(p0)
        rows[name] = {
            "free": relative(weight_change(u, delta, vh).double(), free.double()),
            "tied": relative(weight_change(u, tie_change(delta, groups), vh).double(), tied.double()),
        }
    print_table("error of the weight's change / the change, between the other machine and this one", rows)


def read_shape(text: str) -> tuple[int, int]:
    """\"256x768\" as (256, 768)."""
    out, _, fan_in = text.partition("x")
    return int(out), int(fan_in)


def main(arguments: Arguments) -> None:
    """Print the tables for each shape and, if asked, write every figure to a JSON file."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, seed {arguments.seed}")
    if arguments.save:
        return save_changes(arguments, arguments.save)
    if arguments.check:
        return check_changes(arguments.check)
    recompute, results = ways(), {}
    for text in arguments.shapes:
        shape = read_shape(text)
        torch.manual_seed(arguments.seed)
        weights = hard_weights(shape)
        table = {name: measure(weight, recompute) for name, weight in weights.items()}
        for kind, title in (("free", "every coefficient on its own"), ("tied", "coefficients tied, as samparser does")):
            print_table(
                f"{text}: error of the weight's change / the change, {title}",
                {name: {way: e.change for way, e in found[kind].items()} for name, found in table.items()},
            )
        print_table(
            f"{text}: coefficients tied, the worst over all ways but {' and '.join(AVOIDED)}",
            {name: worst(found["tied"]) for name, found in table.items()},
        )
        free = {
            name: free_coefficients(coefficient_groups(factorize(weight).p), min(shape))
            for name, weight in weights.items()
        }
        print(f"\n{text}: coefficients that move on their own, of {min(shape)}\n")
        print("\n".join(f"{name:32}{count:>6}" for name, count in free.items()))
        rounded = rounded_base(shape)
        print_table(f"{text}: base rounded to half precision", {k: {"weight change": v} for k, v in rounded.items()})
        results[text] = {
            "errors": {
                name: {kind: {way: e._asdict() for way, e in row.items()} for kind, row in found.items()}
                for name, found in table.items()
            },
            "free_coefficients": free,
            "rounded_base": rounded,
        }
    if arguments.output:
        document = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": arguments.seed, **results}
        Path(arguments.output).write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
