"""The teacher scGPT: raw counts -> ranks in 50 bins -> its encoder -> X_teacher.

The tokens of a spot are <cls> and its expressed genes of the vocabulary, each with the bin of its
count among the counts of this spot. The network is in scgpt_network.py and is imported when spots
are embedded.

The official embedding is random in two places, and its function takes no seed: equal counts that
span several bins (most counts of 1 and 2) fall into one of them by chance, each gene for itself,
and of a spot with more than 1,199 genes a random choice is kept. On drawn weights, two runs of one
cell had a cosine down to .78. `ScGpt` is deterministic: it says where chance was and what stands
there instead.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from ..common.errors import PekaError
from .teacher_files import TeacherFiles, settle_options
from .teacher_spots import (
    canonical,
    known_genes,
    refuse_twice,
    refuse_unusable,
    usable_facts,
    wrong_values,
)
from .token_batches import budgeted

SOURCE = "scgpt"
FILES = TeacherFiles(
    SOURCE,
    {
        "checkpoint": "scgpt/best_model.pt",
        "vocabulary": "scgpt/vocab.json",
        "args": "scgpt/args.json",
    },
)
CHOICES = {
    "ties": ("middle", "drawn"), "sampling": ("drawn", "first"), "pre_normalized": ("F", "T"),
    "norm": ("unit", "none"), "unusable": ("error", "drop"), "precision": ("float32", "bfloat16"),
}  # fmt: skip
DIM = 512  # width of the real network
BINS = 51  # with the one of zero counts, which no token has; upstream fixes it, too
SIZES = ("embsize", "nheads", "d_hid", "nlayers")
STYLE = {"input_style": "binned", "input_emb_style": "continuous", "n_bins": BINS}
WITHOUT_EFFECT = ("tokens", "device")  # options that change no number
LEFT_OUT = "no expressed gene of the vocabulary"


@dataclass(eq=False)
class ScGpt:
    """scGPT's embedding of spots: 512 numbers with the real weights ("whole-human").

    It was trained elsewhere, so `fit` does nothing, and no split changes the embedding. A spot
    without an expressed gene of the vocabulary is *unusable*; upstream, one such spot stops all.
    The embedding of a spot depends on nothing but its own counts: not on other spots, batches or,
    with the defaults, the order of genes (except for rounding).

    Attributes:
        checkpoint: best_model.pt; by default the pinned file (mirror, cache or download).
        vocabulary: vocab.json; by default the pinned file.
        args: args.json; by default the pinned file.
        ties: the bin of equal counts that span several: `middle` takes the middle one, `drawn` a
            random one for each gene, from `draw_seed`.
        sampling: which genes stay where a spot has more than `max_length` - 1: `drawn` takes those
            that come first in an order of the vocabulary drawn from `draw_seed`; `first` the first
            ones in the order of columns, which in genome order are those of some chromosomes.
        draw_seed: of what is drawn. Each gene gets its numbers once, for all spots: for one spot
            this is upstream's chance, and two spots with equal counts stay equal.
        max_length: largest number of tokens of a spot, with <cls>. Upstream's is 1200. A Visium
            spot often has more genes; a larger number keeps them and costs time and memory.
        pre_normalized: `F` for raw counts; `T` for values that grow with the counts of a spot,
            such as logarithms. Only ranks matter, so both give the same embedding.
        norm: `unit` divides by the length, as upstream; `none` does not. All values of a unit
            vector are small (.04 on average), and softmax at tau = 1 (Eq. 5) makes them nearly
            uniform: choose a lower tau for it, or `none`.
        unusable: `error`, or `drop`, which leaves NaN in X_teacher.
        min_genes: spots with fewer expressed genes of the vocabulary are unusable.
        tokens: largest number of tokens in a batch with padding, which bounds memory; a longer spot
            is a batch of its own. By default 32,768 on a GPU, and 4,096 (for the cache) on a CPU.
        precision: `float32`, or `bfloat16` (autocast). Upstream uses float16 on a GPU.
        device: `cpu` or `cuda`; by default the best one.

    Raises:
        PekaError: a choice that does not exist, or no file at a path.
    """

    checkpoint: str | Path | None = None
    vocabulary: str | Path | None = None
    args: str | Path | None = None
    ties: str = "middle"
    sampling: str = "drawn"
    draw_seed: int = 0
    max_length: int = 1200
    pre_normalized: str = "F"
    norm: str = "unit"
    unusable: str = "error"
    min_genes: int = 0
    tokens: int | None = None
    precision: str = "float32"
    device: str | None = None

    description = (
        "scGPT's encoder (whole-human), 512-d with the real weights (0.2 GB), needs no fit; ties "
        "and sampling, random upstream, are fixed by a seed; code MIT, the weights' licence is not "
        "stated by their authors; no access request known"
    )
    name, needs_fit = SOURCE, False
    gene_join = "outer"  # a gene that one section did not measure counts where it was measured
    modules: ClassVar[tuple[str, ...]] = ("models.scgpt", "models.scgpt_network")

    def __post_init__(self):
        settle_options(self, FILES, CHOICES)
        if self.max_length < 2:
            raise PekaError(f"scgpt: max_length {self.max_length} leaves no gene beside <cls>")

    def _local(self, option: str) -> Path:
        """Local path of one of the files; fetched and verified where it was not given."""
        return FILES.local(option, self.paths[option])

    @functools.cached_property
    def settings(self) -> dict:
        """What args.json says."""
        path = self._local("args")
        found = _json(path, "scGPT's args.json")
        wanted = f"{path}: expected {STYLE}, whole numbers {', '.join(SIZES)}, pad_token, pad_value"
        sizes = [found.get(name) for name in SIZES]
        fine = all(isinstance(size, int) and size > 0 for size in sizes)
        fine = fine and found["embsize"] % found["nheads"] == 0
        fine = fine and isinstance(found.get("pad_token"), str)
        fine = fine and isinstance(found.get("pad_value"), (int, float))
        if not fine or any(found.get(name) != value for name, value in STYLE.items()):
            raise PekaError(f"{wanted}; give the args.json of this checkpoint")
        return found

    @functools.cached_property
    def symbols(self) -> pd.Index:
        """All tokens of the vocabulary, each at the place of its id.

        Special tokens that the file lacks are appended, as upstream.
        """
        path = self._local("vocabulary")
        ids = _json(path, "scGPT's vocab.json")
        if set(map(str, ids.values())) != set(map(str, range(len(ids)))):
            expected = f"expected a token for each id from 0 to {len(ids) - 1}"
            raise PekaError(f"{path}: {expected}; give scGPT's vocab.json")
        special = (self.settings["pad_token"], "<cls>", "<eoc>")
        tokens = sorted(ids, key=lambda token: int(ids[token]))
        return pd.Index(tokens + [token for token in special if token not in ids])

    @functools.cached_property
    def network(self):
        """The encoder, on the device."""
        from .scgpt_network import build_network, read_state

        path = self._local("checkpoint")
        network = build_network(read_state(path), self.settings, str(path))
        known = network.encoder.embedding.num_embeddings
        if known != len(self.symbols):
            other = f"the vocabulary {self._local('vocabulary')} has {len(self.symbols)}"
            raise PekaError(f"{path} knows {known} tokens, and {other}: give two files that fit")
        return network.to(self.device)

    @functools.cached_property
    def chance(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each token: its place in the order of sampling, and u in [0, 1) of its ties."""
        dice, n = np.random.default_rng(self.draw_seed), len(self.symbols)
        place, u = dice.permutation(n), dice.random(n)
        return place, (u if self.ties == "drawn" else np.full(n, 0.5))

    def fit(self, adata: anndata.AnnData) -> Self:
        """Do nothing: scGPT comes trained."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Counts of spots, with gene symbols in var_names -> X_teacher float32 (n, d).

        Spots that are dropped have NaN.

        Raises:
            PekaError: genes or values that cannot be right, or unusable spots that are an error.
        """
        import torch

        spots, (x, ids) = self.examine(adata), self._known(adata)
        refuse_unusable(spots, self.unusable, "scGPT")
        lengths = np.minimum(spots["genes"].to_numpy() + 1, self.max_length)
        rows = np.flatnonzero(spots["reason"] == "")
        rows = rows[np.argsort(-lengths[rows], kind="stable")]  # longest first
        width = self.network.encoder.embedding.embedding_dim
        x_teacher = np.full((adata.n_obs, width), np.nan, np.float32)
        half = self.precision == "bfloat16"
        kind = torch.device(self.device).type
        with tqdm(total=len(rows), desc="scGPT", unit="spot", disable=None) as bar:
            for some in budgeted(rows, lengths[rows], self.budget):
                packed = self.tokenise(x[some], ids)
                values, tokens, sizes = (torch.from_numpy(part) for part in packed)
                values, tokens = values.to(self.device), tokens.to(self.device)
                with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
                    vectors = self.network(values, tokens, sizes, self.norm == "unit")  # (b, d)
                x_teacher[some] = vectors.cpu().numpy()
                bar.update(len(some))
        return x_teacher

    def examine(self, adata: anndata.AnnData) -> pd.DataFrame:
        """What is known of each spot, one row a spot.

        Columns: genes (expressed, in the vocabulary), and reason, which is empty where the spot is
        usable.

        Raises:
            PekaError: no gene of the vocabulary, one of them twice, or values that are no counts.
        """
        genes = np.diff(self._known(adata)[0].indptr)  # (n,)
        reasons = {LEFT_OUT: genes == 0, self._too_few: genes < self.min_genes}
        reason = np.select(list(reasons.values()), list(reasons), "")
        return pd.DataFrame({"genes": genes, "reason": reason}, index=adata.obs_names)

    @property
    def _too_few(self) -> str:
        return f"fewer than {self.min_genes} expressed genes of the vocabulary"

    def _known(self, adata: anndata.AnnData) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Values above 0 of the genes of the vocabulary (n, g), in the order of columns; ids (g,).

        Upstream, a symbol that comes twice makes two tokens, and negative values and NaN get bins.
        """
        known = known_genes(adata.var_names, self.symbols, "scGPT", "gene symbols")
        x = canonical(adata)[:, known]  # (n, g)
        if wrong := wrong_values(x.data, whole=self.pre_normalized == "F"):
            step = "; 'T' takes logarithms" if "whole" in wrong else ""
            raise PekaError(f"scgpt, pre_normalized {self.pre_normalized!r}: {wrong}{step}")
        x.eliminate_zeros()
        names, used = adata.var_names[known], np.unique(x.indices)
        refuse_twice(names[used])
        return x, self.symbols.get_indexer(names)

    def tokenise(
        self, x: sparse.csr_matrix, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed tokens of usable spots, as scgpt_network wants them.

        Args:
            x, ids: rows of what `_known` returns.

        Returns:
            values float32 (N,), ids int64 (N,), and lengths int64 (b,).
        """
        place, u = self.chance
        pad_value, cls = float(self.settings["pad_value"]), self.symbols.get_loc("<cls>")
        values, tokens = [], []
        for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
            own = ids[x.indices[start:end]]  # (m,)
            bins = bins_of(
                x.data[start:end].astype(np.float64), u[own]
            )  # (m,), before genes are left out
            if len(own) >= self.max_length:
                order = np.argsort(place[own]) if self.sampling == "drawn" else np.arange(len(own))
                own, bins = (part[order[: self.max_length - 1]] for part in (own, bins))
            values += [[pad_value], bins]  # upstream, the value of <cls> is that of padding
            tokens += [[cls], own]
        lengths = np.array([1 + len(part) for part in tokens[1::2]], np.int64)
        return np.concatenate(values, dtype=np.float32), np.concatenate(tokens), lengths

    @staticmethod
    def dim(options: dict) -> int:
        """d_t with the real weights."""
        return DIM

    @staticmethod
    def files(options: dict) -> list[str]:
        """The files of the manifest that the options do not replace."""
        return FILES.wanted(options)

    @staticmethod
    def named_options(options: dict) -> dict:
        """Options that can change a number, with digests in place of paths; they name a unit."""
        return FILES.named(options, WITHOUT_EFFECT)

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings, digests, licence, and what became of spots and genes, for uns["teacher"]."""
        spots, ids = self.examine(adata), self._known(adata)[1]
        long = (spots["genes"] >= self.max_length) & (spots["reason"] == "")
        settings = (*CHOICES, "draw_seed", "max_length", "min_genes")
        return {name: getattr(self, name) for name in settings} | {
            **{f"{option}_sha256": digest for option, digest in FILES.digests(self.paths).items()},
            "license": FILES.license,
            "n_genes_in_vocabulary": len(ids),
            **usable_facts(spots),
            "n_of_which_genes_were_left_out": int(long.sum()),
        }


def bins_of(values: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Bins from 1 to 50 of the positive values (m,) of one spot.

    Edges are the quantiles 0, 1/49, ..., 1 of the values. A value that lies on one edge or none has
    one bin. If it lies on several, because many values are equal, u in [0, 1) (m,) chooses among
    the bins between them, the highest for 0.
    """
    edges = np.quantile(values, np.linspace(0, 1, BINS - 1))  # (50,)
    low = np.searchsorted(edges, values, "left")  # edges below
    high = np.searchsorted(edges, values, "right")  # edges below or equal
    return np.ceil(high - u * (high - low))


def _json(path: Path, what: str) -> dict:
    """A JSON file that holds an object with entries."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PekaError(f"{path} is not {what}: it does not read as JSON ({error})") from error
    if not isinstance(found, dict) or not found:
        raise PekaError(f"{path} is not {what}: expected names with values")
    return found
