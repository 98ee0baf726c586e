"""SAM's attention between a few tokens and the whole image embedding, without projecting the image.

In SAM's mask decoder about seven tokens of an instance attend to 64 x 64 places, and these to them. Written as usual,
each place is projected twice per layer. A score is `(Wq t) . (Wk x) = (Wk^T Wq t) . x`: the projection of the places
can be absorbed into the tokens, of which there are a few hundred times fewer, and likewise that of the values. What is
left to do at each place is one product with `heads * tokens` vectors, 56 instead of 128 for one box in SAM.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .switched_class import is_switched_here, plain_class


def absorbing_is_cheaper(queries: int, keys: int, hidden: int, internal: int, heads: int) -> bool:
    """Return whether attention takes fewer products with the longer side's projections absorbed into the shorter one.

    With T tokens, L places, C hidden and I internal channels and h heads, the usual way takes `2 T I C + 2 L I C +
    2 T L I`, the other one `4 T I C + 2 L h T C`.

    Args:
        queries: How many queries there are.
        keys: How many keys and values.
        hidden: Channels of what comes in and goes out, C.
        internal: Channels of all heads together after the projections, I.
        heads: How many heads, h.

    Example:
        A box, as four output tokens, the score's and two corners, before 64 x 64 places of SAM, and ten points:

        >>> absorbing_is_cheaper(7, 4096, hidden=256, internal=128, heads=8)
        True
        >>> absorbing_is_cheaper(16, 4096, hidden=256, internal=128, heads=8)
        True
        >>> absorbing_is_cheaper(20, 4096, hidden=256, internal=128, heads=8)
        False
        >>> absorbing_is_cheaper(7, 7, hidden=256, internal=256, heads=8)
        False
    """
    tokens, places = sorted((queries, keys))
    usual = 2 * internal * (hidden * (tokens + places) + tokens * places)
    absorbed = 2 * hidden * (2 * tokens * internal + places * heads * tokens)
    return absorbed < usual


def is_plain_attention(module: Any) -> bool:
    """Return whether a module is transformers' SamAttention, with projections that carry no adapter."""
    from transformers.models.sam.modeling_sam import SamAttention

    return plain_class(module) is SamAttention and all(
        type(projection) is nn.Linear and projection.bias is not None
        for projection in (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    )


@cache
def absorbed_attention_class() -> type[nn.Module]:
    """Return SamAttention with absorbing; made when first asked for, since transformers imports slowly."""
    from transformers.models.sam.modeling_sam import SamAttention

    class AbsorbedAttention(SamAttention):
        plain_class = SamAttention

        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None = None, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            lengths = query.shape[2], key.shape[2]
            sizes = self.hidden_size, self.internal_dim, self.num_attention_heads
            plain = attention_similarity is not None or not is_switched_here(self)
            if plain or not absorbing_is_cheaper(*lengths, *sizes):
                return SamAttention.forward(self, query, key, value, attention_similarity, **kwargs)
            if lengths[0] < lengths[1]:
                return self._tokens_to_places(query, key, value)
            return self._places_to_tokens(query, key, value)

        def _tokens_to_places(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            """Let tokens (b, n, T, C) look at places (b, n, L, C): b images of n instances."""
            weights = self._scores(self.q_proj(query), self.k_proj, key).softmax(-1)
            seen = torch.bmm(weights.flatten(1, 2), value.flatten(0, 1)).unflatten(1, weights.shape[1:3])
            # The weights of a token sum to one, so the bias passes through.
            heads = seen @ self._by_head(self.v_proj.weight).mT
            output = self._recombine_heads(heads.transpose(1, 2), query.shape[1]) + self.v_proj.bias
            return self.out_proj(output), weights

        def _places_to_tokens(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            """Let places (b, n, L, C) look at tokens (b, n, T, C)."""
            weights = self._scores(self.k_proj(key), self.q_proj, query).softmax(-2)
            values = self._separate_heads(self.v_proj(value), self.num_attention_heads)
            outputs = values @ self._by_head(self.out_proj.weight.T)
            output = torch.bmm(weights.flatten(1, 2).mT, outputs.flatten(1, 2)) + self.out_proj.bias
            return output.unflatten(0, query.shape[:2]), weights.mT

        def _scores(self, projected: Tensor, absorbed: nn.Linear, places: Tensor) -> Tensor:
            """Score projected tokens (b, n, T, I) with places (b, n, L, C) before `absorbed`: (b * n, h, T, L)."""
            tokens = self._separate_heads(projected, self.num_attention_heads) * self.scaling
            directions = tokens @ self._by_head(absorbed.weight)
            shift = tokens @ absorbed.bias.view(self.num_attention_heads, -1, 1)
            scores = torch.baddbmm(shift.flatten(1, 2), directions.flatten(1, 2), places.flatten(0, 1).mT)
            return scores.unflatten(1, directions.shape[1:3])

        def _by_head(self, weight: Tensor) -> Tensor:
            """Return a weight (I, C) as (h, I / h, C)."""
            return weight.unflatten(0, (self.num_attention_heads, -1))

    return AbsorbedAttention
