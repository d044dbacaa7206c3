"""The encoder of scFoundation (Hao et al. 2024): tokens of many spots -> one vector a spot.

Modules have the names of the official file models.ckpt, so that its weights load strictly. Its
decoder is left out, since no embedding of a spot needs it. Layers are post-norm with ReLU, and the
value of a token is embedded as a mixture of bins.

Tokens of b spots are packed, one spot after the other: values (N,), ids (N,) and lengths (b,); N
is the sum of the lengths. The last two tokens of each spot are T and S.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common.errors import PekaError
from .packed_layers import Layer, Layout
from .weight_files import load_exactly, load_safely

# parts of the weights that no embedding of a spot uses: the decoder, and two special values
NOT_ENCODER = (
    "decoder.",
    "decoder_embed.",
    "norm.",
    "to_final.",
    "token_emb.emb_mask.",
    "token_emb.emb_pad.",
)


class ValueEmbedding(nn.Module):
    """A value -> softmax weights over bins -> their mixture of learnt vectors.

    Upstream, the exact values 102 and 103 mean mask and padding. `ScFoundation` refuses both.
    """

    def __init__(self, dim: int, bins: int, alpha: float):
        super().__init__()
        self.alpha = alpha
        self.mlp, self.mlp2 = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.emb = nn.Embedding(bins, dim)

    def weights(self, values: Tensor) -> Tensor:
        """Values (N,) -> weights of the bins (N, bins), each row sums to 1."""
        x = F.leaky_relu(self.mlp(values[:, None]), 0.1)  # (N, bins)
        return torch.softmax(self.alpha * x + self.mlp2(x), dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        """(N,) -> (N, d), in float32 also under autocast: rounded values would be other values."""
        with torch.autocast(values.device.type, enabled=False):
            return self.weights(values) @ self.emb.weight  # (N, bins) @ (bins, d)


class Encoder(nn.Module):
    """All layers, and the norm after them."""

    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        self.transformer_encoder = nn.ModuleList(Layer(dim, heads, 4 * dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(N, d) -> (N, d)."""
        for layer in self.transformer_encoder:
            x = layer(x, layout)
        return self.norm(x)


class ScFoundationNetwork(nn.Module):
    """Value and position embeddings, encoder, pooling.

    Args:
        dim, depth, heads: width d, layers and heads of the encoder.
        bins, alpha: of the value embedding.
        positions: genes of the vocabulary, T, S and one for padding.
    """

    def __init__(self, dim: int, depth: int, heads: int, bins: int, alpha: float, positions: int):
        super().__init__()
        self.token_emb = ValueEmbedding(dim, bins, alpha)
        self.pos_emb = nn.Embedding(positions, dim)
        self.encoder = Encoder(dim, depth, heads)

    def encode(self, values: Tensor, ids: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (N,), (N,) -> their vectors (N, d)."""
        return self.encoder(self.token_emb(values) + self.pos_emb(ids), layout)

    def forward(self, values: Tensor, ids: Tensor, lengths: Tensor, pool: str = "all") -> Tensor:
        """Packed tokens of b spots -> (b, 4 d): S, T, maximum and mean over genes.

        With pool `max`, the maximum over all tokens: (b, d).
        """
        layout = Layout(lengths, values.device)
        x = self.encode(values, ids, layout).float()  # (N, d)
        if pool == "max":
            return layout.pad(x, -torch.inf).amax(1)  # (b, m, d) -> (b, d)
        s, t = layout.ends - 1, layout.ends - 2
        vectors = [x[s], x[t]]  # before they are blanked
        mean = layout.pad(x.index_fill(0, torch.cat([s, t]), 0.0)).sum(1) / (
            lengths.to(x.device)[:, None] - 2
        )  # (b, d)
        top = layout.pad(x.index_fill(0, torch.cat([s, t]), -torch.inf), -torch.inf).amax(
            1
        )  # (b, d)
        return torch.cat([*vectors, top, mean], dim=1)  # (b, 4 d)


def read_checkpoint(path: Path, mode: str) -> dict:
    """`config` and `state_dict` of one mode of a file; memory-mapped where it is a zip archive.

    Raises:
        PekaError: no file of weights that loads safely, or without this mode.
    """
    modes = load_safely(path, mmap=True)
    found = modes.get(mode) if isinstance(modes, dict) else None
    if not isinstance(found, dict) or not {"config", "state_dict"} <= set(found):
        there = sorted(map(str, modes))[:5] if isinstance(modes, dict) else type(modes).__name__
        expected = f"scFoundation's modes, {mode!r} with config and state_dict among them"
        raise PekaError(f"{path}: expected {expected}; found {there}")
    return found


def build_network(found: dict, name: str) -> ScFoundationNetwork:
    """The network of one mode with its weights, every parameter frozen.

    Args:
        found: `config` and `state_dict`, as in the file.
        name: the file and mode, for messages.

    Raises:
        PekaError: a configuration of another kind of model, or weights that do not fit it exactly.
    """
    try:
        kind = found["config"]["model"]
        config = {
            **found["config"]["model_config"][kind],
            **found["config"]["dataset_config"]["rnaseq"],
        }
        encoder = config["encoder"]
        sizes = [encoder[key] for key in ("hidden_dim", "depth", "heads")]
        sizes += [config["bin_num"], config["bin_alpha"], config["seq_len"] + 1]
    except (KeyError, TypeError) as error:
        raise PekaError(
            f"{name}: its config has no {error}; expected the layout of scFoundation's models.ckpt"
        ) from error
    if (kind, encoder.get("module_type")) != ("mae_autobin", "transformer"):
        found_kind = f"{kind} with {encoder.get('module_type')}"
        raise PekaError(f"{name}: expected mae_autobin with a transformer, found {found_kind}")
    with torch.device("meta"):  # no memory, no drawing: every weight comes from the file
        network = ScFoundationNetwork(*sizes)
    state = {key.removeprefix("model."): value for key, value in found["state_dict"].items()}
    state = {key: value for key, value in state.items() if not key.startswith(NOT_ENCODER)}
    load_exactly(network, state, f"{name} does not fit scFoundation's encoder", "models.ckpt")
    return network.requires_grad_(False).eval()
