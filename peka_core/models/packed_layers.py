"""Layers of a transformer over packed tokens, for the teachers that have one.

Tokens of b spots are packed, one spot after the other: (N, d), where N is the sum of the lengths.
Only attention looks at a padded form (b, m, d), where m is the longest length, so nothing else
works on padding. Parameters have the names of torch's own `TransformerEncoderLayer`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention of packed tokens; each attends to the tokens of its own spot."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = (
            nn.Parameter(torch.empty(3 * dim, dim)),
            nn.Parameter(torch.empty(3 * dim)),
        )
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: "Layout") -> Tensor:
        """(N, d) -> (N, d)."""
        qkv = layout.pad(F.linear(x, self.in_proj_weight, self.in_proj_bias))  # (b, m, 3 d)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(
            2, 0, 3, 1, 4
        )  # 3 x (b, heads, m, d / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask)
        return self.out_proj(layout.unpad(mixed.transpose(1, 2).flatten(2)))  # (b, m, d) -> (N, d)


class Layer(nn.Module):
    """One post-norm encoder layer with ReLU."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, layout: "Layout") -> Tensor:
        """(N, d) -> (N, d)."""
        x = self.norm1(x + self.self_attn(x, layout))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Layout:
    """Where the tokens of packed spots lie in the padded form.

    Args:
        lengths: tokens of each spot (b,), on the CPU.
    """

    def __init__(self, lengths: Tensor, device: str | torch.device):
        self.shape = (len(lengths), int(lengths.max()))  # (b, m)
        inside = torch.arange(self.shape[1]) < lengths[:, None]  # (b, m)
        self.place = inside.flatten().nonzero()[:, 0].to(device)  # (N,) rows of the padded form
        self.mask = (
            None if inside.all() else inside[:, None, None].to(device)
        )  # (b, 1, 1, m): which keys count
        self.ends = lengths.cumsum(0).to(device)  # (b,)

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """(N, c) -> (b, m, c)."""
        padded = x.new_full((self.shape[0] * self.shape[1], x.shape[1]), fill)
        return padded.index_copy_(0, self.place, x).unflatten(0, self.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """(b, m, c) -> (N, c)."""
        return x.flatten(0, 1)[self.place]
