"""The position encodings that the necks of SAM 2, EdgeTAM and SAM 3 make beside their maps, left out.

They are for the memory of videos. On single images nothing reads them, and for SAM 2 they take a quarter of the time of
a training step from cached features: sines and cosines of 256 channels at 256 x 256 places, anew in each step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .switched_class import is_switched_here, plain_class, switched


def without_position_encodings(neck: nn.Module) -> AbstractContextManager[None]:
    """Let a neck give empty tensors in place of position encodings inside the block, in this thread; its maps stay.

    Nothing to do for a neck without a module `position_encoding`, and while torch compiles, which knows no locks.
    """
    module = getattr(neck, "position_encoding", None)
    if not isinstance(module, nn.Module) or "forward" in vars(module) or torch.compiler.is_compiling():
        return nullcontext()
    return switched([(module, _empty_encoding_class(plain_class(module)))])


@cache
def _empty_encoding_class(plain: Any) -> type[nn.Module]:
    class EmptyEncoding(plain):
        plain_class = plain

        def forward(
            self, shape: torch.Size, device: torch.device | str, dtype: torch.dtype, mask: Tensor | None = None
        ) -> Tensor:
            if is_switched_here(self):
                return torch.empty(0, device=device, dtype=dtype)
            encoding: Tensor = plain.forward(self, shape, device, dtype, mask)
            return encoding

    return EmptyEncoding
