"""A second device without hardware: tensors that say they are on `cuda:0`, compute on the CPU, and refuse to mix.

Torch's fake tensors would say so too, but a CPU build of torch has no device guard for `cuda`, so that the first of
them that requires a gradient ends the process; and having no values they cannot pass a place that asks for one. Here
each tensor of the second device holds a tensor of the CPU that has its values, so whole paths run, to results that
are equal bit for bit. Beneath stands `lazy`, a device type whose guard is in every build of torch and which nothing
else uses.

What is seen: an operation on tensors of both devices, which on a GPU is an error or a hidden copy, is an error here,
and every place where the host would wait for the device is written down. What is not: streams, memory, speed, autocast
and the rounding of another device. A parameter that two modules share is one for each after `model.to("cuda")`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import samparser

DEVICE = torch.device("cuda", 0)
_BENEATH = torch.device("lazy", 0)
_ROOT = Path(samparser.__file__).parent
_HERE = Path(__file__)

# Their result has as many numbers as the values say, which the host has to know.
_SIZED_BY_VALUES = {
    *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    "repeat_interleave",  # by counts that are a tensor; by a number it is another operation
}
_READS = {"_local_scalar_dense": "item", "equal": "equal", "is_nonzero": "item"}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of both devices."""


class SecondDeviceTensor(Tensor):
    """A tensor of the second device; `value` is the one of the CPU that has its values."""

    value: Tensor

    @staticmethod
    def of(value: Tensor) -> SecondDeviceTensor:
        tensor = Tensor._make_wrapper_subclass(
            SecondDeviceTensor,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
            device=_BENEATH,
        )
        tensor.value = value
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        # Functions of torch that are written in Python make tensors on the device of others, unseen by `_Devices`.
        return _BENEATH if _Devices.within else DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, SecondDeviceTensor):
            raise MixedDevicesError(f"A tensor of the second device got values on {new.device}.")
        torch._C.TensorBase.data.__set__(self, new)  # type: ignore[attr-defined]
        self.value = new.value

    def data_ptr(self) -> int:
        return self.value.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.value.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.cpu().numpy()

    def __repr__(self, **_: Any) -> str:
        return f"on the second device: {self.value!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.value.__reduce_ex__(protocol)  # in a file it has no device

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = SecondDeviceTensor.of(self.value.detach().clone())
            memo[id(self)] = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]


class Waits:
    """Where the host waited for the second device, or sent it something.

    `waits` counts `(file of the library:function, operation)` of what makes the host wait until the device is done;
    `sent` counts what is copied from the CPU to the device, which is no wait but a copy.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()


_open: list[Waits] = []


@contextmanager
def watching() -> Iterator[Waits]:
    """Write down where the host waits inside the block."""
    found = Waits()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


def _note(kind: str, what: str) -> None:
    if not _open:
        return
    where = _place()
    for waits in _open:
        getattr(waits, kind)[where, what] += 1


def _place() -> str:
    """Name the innermost function of the library that is running, else the innermost outside torch."""
    frame, other = sys._getframe(2), None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_ROOT) and not frame.f_code.co_name.startswith("<"):  # a comprehension
            return f"{path.relative_to(_ROOT)}:{frame.f_code.co_name}"
        if other is None and path != _HERE and "torch" not in path.parts:
            other = f"{path.stem}:{frame.f_code.co_name}"
        frame = frame.f_back
    return other or "torch"


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_mapped(change, part) for part in value)
    return {name: _mapped(change, part) for name, part in value.items()} if isinstance(value, dict) else change(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
    elif isinstance(value, Tensor):
        yield value


def _values(value: Any) -> Any:
    return value.value if isinstance(value, SecondDeviceTensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation of torch, beneath autograd, on the values."""
    name = func.overloadpacket.__name__
    tensors = list(_tensors((args, kwargs)))
    there = [t for t in tensors if isinstance(t, SecondDeviceTensor)]
    wanted = kwargs.get("device")
    moves = name in ("_to_copy", "copy_", "_copy_from")
    if there and not moves:
        strangers = [t for t in tensors if not isinstance(t, SecondDeviceTensor) and t.ndim]
        if strangers and name in _INDEXING:  # torch sends indices after what they index
            indices = {id(t) for t in _tensors(args[1])}
            for _ in indices & {id(t) for t in strangers}:
                _note("sent", "index")
            strangers = [t for t in strangers if id(t) not in indices]
        if strangers:
            raise MixedDevicesError(
                f"{func} in {_place()} got tensors on {DEVICE} and on {strangers[0].device}, of shapes "
                f"{[tuple(t.shape) for t in tensors]}."
            )
    if there:
        _note_waits(name, args, wanted)
    elif name == "_to_copy" and wanted is not None and torch.device(wanted).type == "lazy":
        _note("sent", "to")
    elif name == "copy_" and isinstance(args[0], SecondDeviceTensor):
        _note("sent", "copy_")
    goes = bool(there) if wanted is None else torch.device(wanted).type == "lazy"
    if wanted is not None:
        kwargs = {**kwargs, "device": "cpu" if goes else wanted}
    result = func(*_mapped(_values, args), **_mapped(_values, kwargs))
    if moves and name != "_to_copy":
        return args[0]
    if not goes:
        return result
    known = {id(t.value): t for t in there}
    return _mapped(lambda value: _there(value, known), result)


def _there(value: Any, known: dict[int, SecondDeviceTensor]) -> Any:
    """Bring what an operation gave to the second device: the tensor that was changed in place, or a new one."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return known[id(value)] if id(value) in known else SecondDeviceTensor.of(value)


def _note_waits(name: str, args: Any, wanted: Any) -> None:
    """Write down an operation on a tensor of the device for which the host waits, or which sends it something."""
    leaves = wanted is not None and torch.device(wanted).type != "lazy"
    if (name == "_to_copy" and leaves) or (name == "copy_" and not isinstance(args[0], SecondDeviceTensor)):
        _note("waits", "to cpu")
    elif name == "copy_" and not isinstance(args[1], SecondDeviceTensor):
        _note("sent", "copy_")
    elif name in _READS or name in _SIZED_BY_VALUES:
        _note("waits", _READS.get(name, name))
    elif name in _INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])):
        _note("waits", "boolean index")


class _Operations(TorchDispatchMode):
    """Lets the second device run what has no tensor of its own, such as `torch.zeros(2, device="cuda")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """Takes `cuda` in arguments for the second device, before torch looks for a driver."""

    within = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(DEVICE)
        if func is Tensor.pin_memory:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = _beneath(kwargs["device"])
        if func in (Tensor.to, torch.empty_like, torch.zeros_like):
            args = (args[0], *(_beneath(value) for value in args[1:]))
        _Devices.within += 1
        try:
            return func(*args, **kwargs)
        finally:
            _Devices.within -= 1


def _beneath(value: Any) -> Any:
    if isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda":
        return _BENEATH
    return value


@contextmanager
def second_device(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Let `cuda` be the second device inside the block."""
    # The library leaves tensors of other classes alone, which stand for sharded or traced ones; these are plain.
    for name, module in list(sys.modules.items()):
        if name.startswith("samparser.") and hasattr(module, "is_plain"):
            patch.setattr(module, "is_plain", lambda tensor: tensor.numel() != 0 and not tensor.is_meta)
    # Where transformers and accelerate look for the device to train on.
    patch.setattr(torch.accelerator, "is_available", lambda: True)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setenv("ACCELERATE_TORCH_DEVICE", str(DEVICE))
    # Optimizers ask whether their step is recorded as a graph.
    patch.setattr(torch.accelerator, "current_stream", lambda: SimpleNamespace(is_capturing=lambda: False))
    # torch.tensor(..., device="cuda") makes its tensor on the CPU and moves it there in sight of `_Operations`.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        # The one attention that both devices have, for what is computed on the CPU to compare with.
        with sdpa_kernel(SDPBackend.MATH), _Operations(), _Devices():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def assert_same(there: Tensor, here: Tensor) -> None:
    """Assert that a tensor lies on the second device and has the values of one on the CPU."""
    assert there.device.type == "cuda", there.device
    assert here.device.type == "cpu", here.device
    if isinstance(there, SecondDeviceTensor):
        assert torch.equal(there.detach().cpu(), here)
    else:  # a GPU adds up in another order
        torch.testing.assert_close(there.detach().cpu(), here, rtol=1e-3, atol=1e-4)
