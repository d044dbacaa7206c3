"""The encoder of scGPT (Cui et al. 2024): tokens of many spots -> one vector a spot.

Modules have the names of the official file best_model.pt, so that its weights load strictly, after
the names that flash-attention gave to the attention's projection are changed into torch's. Its
decoders, and a table of flags that no embedding uses, are left out. A token is the sum of two
normalised vectors, of the gene and of its bin. Nothing tells its place, so order has no effect.

Tokens are packed as in packed_layers.py: values (N,), ids (N,) and lengths (b,). The first token of
each spot is <cls>.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common.errors import PekaError
from .packed_layers import Layer, Layout
from .weight_files import load_exactly, load_safely

NOT_ENCODER = ("flag_encoder.", "decoder.", "mvc_decoder.", "cls_decoder.")
LARGEST_VALUE = 512.0  # larger values are cut, as upstream; bins end at 50


class GeneEmbedding(nn.Module):
    """A learnt vector for each token of the vocabulary, normalised."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.embedding, self.enc_norm = nn.Embedding(tokens, dim), nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(N,) -> (N, d)."""
        return self.enc_norm(self.embedding(ids))


class ValueEmbedding(nn.Module):
    """A vector for a bin, which enters as a number: two linear layers with ReLU, normalised."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(1, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, values: Tensor) -> Tensor:
        """(N,) -> (N, d)."""
        x = values.clamp(max=LARGEST_VALUE)[:, None]  # (N, 1)
        return self.norm(self.linear2(F.relu(self.linear1(x))))


class ScGptNetwork(nn.Module):
    """Gene and value embeddings, and post-norm layers without a norm after the last.

    Args:
        tokens: genes of the vocabulary and special tokens.
        dim, heads, hidden, depth: width d, heads, hidden width and number of the layers.
    """

    def __init__(self, tokens: int, dim: int, heads: int, hidden: int, depth: int):
        super().__init__()
        self.encoder, self.value_encoder = GeneEmbedding(tokens, dim), ValueEmbedding(dim)
        layers = nn.ModuleList(Layer(dim, heads, hidden) for _ in range(depth))
        self.transformer_encoder = nn.ModuleDict({"layers": layers})

    def encode(self, values: Tensor, ids: Tensor, layout: Layout) -> Tensor:
        """Packed tokens (N,), (N,) -> their vectors (N, d)."""
        x = self.encoder(ids) + self.value_encoder(values)  # (N, d)
        for layer in self.transformer_encoder["layers"]:
            x = layer(x, layout)
        return x

    def forward(self, values: Tensor, ids: Tensor, lengths: Tensor, unit: bool = True) -> Tensor:
        """Packed tokens of b spots -> the vectors of their <cls> (b, d), of length 1 if `unit`."""
        layout = Layout(lengths, values.device)
        x = self.encode(values, ids, layout).float()
        cls = x[layout.ends - lengths.to(x.device)]  # (b, d)
        return cls / cls.norm(dim=1, keepdim=True) if unit else cls


def build_network(state: dict[str, Tensor], args: dict, name: str) -> ScGptNetwork:
    """The network with its weights, every parameter frozen.

    Args:
        state: tensors by name, as in the file.
        args: what args.json says: embsize, nheads, d_hid and nlayers.
        name: the file, for messages.

    Raises:
        PekaError: tensors that do not fit these sizes exactly. (Upstream leaves tensors that are
            missing or have another shape as they were drawn, and says nothing.)
    """
    state = {
        key.replace("._impl.", ".").replace(".Wqkv.", ".in_proj_"): value
        for key, value in state.items()
        if not key.startswith(NOT_ENCODER)
    }
    table = state.get("encoder.embedding.weight")
    tokens = 0 if table is None else len(table)
    with torch.device("meta"):  # no memory, no drawing: every weight comes from the file
        network = ScGptNetwork(
            tokens, args["embsize"], args["nheads"], args["d_hid"], args["nlayers"]
        )
    load_exactly(network, state, f"{name} does not fit scGPT's encoder", "best_model.pt, args.json")
    return network.requires_grad_(False).eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, memory-mapped; PekaError where the file has none or does not load safely."""
    state = load_safely(path, mmap=True)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise PekaError(f"{path}: expected scGPT's tensors by name, found {type(state).__name__}")
    return state
