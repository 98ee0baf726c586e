"""The attention between a few tokens and the whole image embedding in mask decoders, without projecting the image.

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

from .switched_class import full_name, is_switched_here, plain_class


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


# The attention in the mask decoders of all families computes the same; what joins the heads has two names.
_OUT = {
    "transformers.models.sam.modeling_sam.SamAttention": "out_proj",
    "transformers.models.sam_hq.modeling_sam_hq.SamHQAttention": "out_proj",
    "transformers.models.sam2.modeling_sam2.Sam2Attention": "o_proj",
    "transformers.models.edgetam.modeling_edgetam.EdgeTamAttention": "o_proj",
    "transformers.models.sam3_tracker.modeling_sam3_tracker.Sam3TrackerAttention": "o_proj",
}


def is_plain_attention(module: Any) -> bool:
    """Return whether a module is the attention of a mask decoder in transformers, and no projection has an adapter."""
    out = _OUT.get(full_name(plain_class(module)))
    return out is not None and all(
        type(projection) is nn.Linear and projection.bias is not None
        for projection in (module.q_proj, module.k_proj, module.v_proj, getattr(module, out))
    )


@cache
def absorbed_attention_class(plain: Any) -> type[nn.Module]:
    """Return a class of attention in mask decoders with absorbing."""
    out = _OUT[full_name(plain)]

    class AbsorbedAttention(plain):
        plain_class = plain

        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None = None, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            lengths = query.shape[2], key.shape[2]
            sizes = self.hidden_size, self.internal_dim, self.num_attention_heads
            as_usual = attention_similarity is not None or not is_switched_here(self)
            if as_usual or not absorbing_is_cheaper(*lengths, *sizes):
                output, weights = plain.forward(self, query, key, value, attention_similarity, **kwargs)
                return output, weights
            if lengths[0] < lengths[1]:
                return self._tokens_to_places(query, key, value)
            return self._places_to_tokens(query, key, value)

        def _tokens_to_places(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            """Let tokens (b, n, T, C) look at places (b, n, L, C): b images of n instances."""
            weights = self._scores(self.q_proj(query), self.k_proj, key).softmax(-1)
            seen = torch.bmm(weights.flatten(1, 2), value.flatten(0, 1)).unflatten(1, weights.shape[1:3])
            # The weights of a token sum to one, so the bias passes through.
            heads = seen @ self._by_head(self.v_proj.weight).mT
            output = heads.transpose(1, 2).flatten(-2).unflatten(0, query.shape[:2]) + self.v_proj.bias
            return getattr(self, out)(output), weights

        def _places_to_tokens(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            """Let places (b, n, L, C) look at tokens (b, n, T, C)."""
            weights = self._scores(self.k_proj(key), self.q_proj, query).softmax(-2)
            last = getattr(self, out)
            outputs = self._heads(self.v_proj(value)) @ self._by_head(last.weight.T)
            output = torch.bmm(weights.flatten(1, 2).mT, outputs.flatten(1, 2)) + last.bias
            return output.unflatten(0, query.shape[:2]), weights.mT

        def _scores(self, projected: Tensor, absorbed: nn.Linear, places: Tensor) -> Tensor:
            """Score projected tokens (b, n, T, I) with places (b, n, L, C) before `absorbed`: (b * n, h, T, L)."""
            tokens = self._heads(projected) * self.scaling
            directions = tokens @ self._by_head(absorbed.weight)
            shift = tokens @ absorbed.bias.view(self.num_attention_heads, -1, 1)
            scores = torch.baddbmm(shift.flatten(1, 2), directions.flatten(1, 2), places.flatten(0, 1).mT)
            return scores.unflatten(1, directions.shape[1:3])

        def _heads(self, tokens: Tensor) -> Tensor:
            """Return projected tokens (b, n, T, I) as (b * n, h, T, I / h)."""
            return tokens.flatten(0, 1).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

        def _by_head(self, weight: Tensor) -> Tensor:
            """Return a weight (I, C) as (h, I / h, C)."""
            return weight.unflatten(0, (self.num_attention_heads, -1))

    return AbsorbedAttention
