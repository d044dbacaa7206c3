"""The encoder of Geneformer (Theodoris et al. 2023), which is BERT: tokens of spots -> vectors.

Modules have the names of the official files, so that their weights load strictly. The part that
guesses masked genes is left out, since no embedding of a spot needs it. Layers are post-norm with
ReLU. b spots of a batch are padded to m tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common.errors import PekaError
from .weight_files import load_exactly

# weights that no embedding of a spot uses: the heads of pretrained and of fine-tuned models, and a
# buffer 0, 1, 2, … that older files hold
NOT_ENCODER = ("cls.", "classifier.", "pooler.", "embeddings.position_ids")


class Embeddings(nn.Module):
    """Gene + rank + token type 0 -> LayerNorm. The first token has position 0."""

    def __init__(self, genes: int, positions: int, types: int, dim: int, eps: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(genes, dim)
        self.position_embeddings = nn.Embedding(positions, dim)
        self.token_type_embeddings = nn.Embedding(types, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, m) -> (b, m, d)."""
        ranks = self.position_embeddings.weight[: ids.shape[1]]  # (m, d)
        kind = self.token_type_embeddings.weight[0]  # (d,)
        return self.LayerNorm(self.word_embeddings(ids) + ranks + kind)


class SelfAttention(nn.Module):
    """Multi-head self-attention, without the projection after it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, m, d) -> (b, m, d); `mask` bool (b, 1, 1, m) says which tokens are no padding."""
        q, k, v = (
            of(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (b, heads, m, d / heads)
            for of in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A linear map, added to what came before, then LayerNorm."""

    def __init__(self, wide: int, dim: int, eps: float):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(wide, dim), nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """(b, m, wide), (b, m, d) -> (b, m, d)."""
        return self.LayerNorm(before + self.dense(x))


class Layer(nn.Module):
    """One post-norm encoder layer with ReLU."""

    def __init__(self, dim: int, heads: int, wide: int, eps: float):
        super().__init__()
        attention = {"self": SelfAttention(dim, heads), "output": Residual(dim, dim, eps)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, wide)})
        self.output = Residual(wide, dim, eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, m, d) -> (b, m, d)."""
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.relu(self.intermediate["dense"](x)), x)


class GeneformerNetwork(nn.Module):
    """Embeddings and layers.

    Args:
        genes, positions, types: rows of the three tables of embeddings; `positions` is also the
            largest number of tokens of a spot.
        dim, heads, wide, depth: width d, heads, hidden width and number of layers.
        eps: of every LayerNorm.
    """

    def __init__(
        self, genes: int, positions: int, types: int, dim: int, heads: int, wide: int, depth: int,
        eps: float,
    ):  # fmt: skip
        super().__init__()
        self.embeddings = Embeddings(genes, positions, types, dim, eps)
        layers = nn.ModuleList(Layer(dim, heads, wide, eps) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    def encode(self, ids: Tensor, lengths: Tensor, emb_layer: int = 0) -> Tensor:
        """Tokens (b, m) of which the first `lengths` (b,) count -> (b, m, d).

        Args:
            emb_layer: 0 for the output of the last layer, -1 for that of the layer before it.
        """
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (b, m)
        mask = None if inside.all() else inside[:, None, None]  # (b, 1, 1, m)
        x, layers = self.embeddings(ids), self.encoder["layer"]
        for layer in layers[: len(layers) + emb_layer]:
            x = layer(x, mask)
        return x

    def forward(
        self, ids: Tensor, lengths: Tensor, emb_mode: str, emb_layer: int, special: bool
    ) -> Tensor:
        """Tokens (b, m), lengths (b,) -> (b, d).

        Args:
            emb_mode: `cls` for the first token, `cell` for the mean over genes.
            special: whether the first and the last token of a spot are no genes.
        """
        x = self.encode(ids, lengths, emb_layer).float()
        if emb_mode == "cls":
            return x[:, 0]
        place = torch.arange(ids.shape[1], device=ids.device)  # (m,)
        is_gene = (place >= special) & (place < lengths[:, None] - int(special))  # (b, m)
        return (x * is_gene[..., None]).sum(1) / is_gene.sum(1, keepdim=True)


def build_network(sizes: dict, state: dict[str, Tensor], name: str) -> GeneformerNetwork:
    """The network with its weights, every parameter frozen.

    Args:
        sizes: the arguments of `GeneformerNetwork`.
        state: contents of model.safetensors.
        name: the files, for messages.

    Raises:
        PekaError: the weights do not fit the numbers exactly.
    """
    if sizes["dim"] % sizes["heads"]:
        raise PekaError(f"{name}: {sizes['heads']} heads cannot share {sizes['dim']} values")
    with torch.device("meta"):  # no memory, no drawing: every weight comes from the file
        network = GeneformerNetwork(**sizes)
    state = {key.removeprefix("bert."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(NOT_ENCODER)}
    load_exactly(network, state, f"{name} do not fit each other", "both files")
    return network.float().requires_grad_(False).eval()
