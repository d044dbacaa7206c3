"""A second published teacher, Geneformer: raw counts -> ranked genes -> its encoder -> X_teacher.

A spot is a sentence. Its words are its expressed genes, in the order of count / median, largest
first, where the median is that of the gene over the cells of Geneformer's corpus. Counts have no
other part in it. In series V2 a sentence begins with <cls> and ends with <eos>. The network is in
geneformer_network.py and is imported when spots are embedded. `Geneformer` says where this differs
from the official code.
"""

import contextlib
import functools
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from ..common.errors import PekaError
from ..common.file_kinds import PICKLE, what_is
from .teacher_files import TeacherFiles, settle_options
from .teacher_spots import canonical, refuse_unusable, usable_facts, wrong_values
from .token_batches import budgeted

SOURCE = "geneformer"
DIMS = {"V1-10M": 256, "V2-104M": 768, "V2-104M_CLcancer": 768, "V2-316M": 1152}
CHOICES = {
    "model": tuple(DIMS), "emb_mode": ("auto", "cls", "cell"), "emb_layer": (-1, 0),
    "unusable": ("error", "drop"), "precision": ("float32", "bfloat16"),
}  # fmt: skip
WITHOUT_EFFECT = ("tokens", "device")  # options that change no number
BLOCK = 4_096  # spots whose genes are counted at once
SIZES = {  # of the network -> in config.json
    "genes": "vocab_size", "positions": "max_position_embeddings", "types": "type_vocab_size",
    "dim": "hidden_size", "heads": "num_attention_heads", "wide": "intermediate_size",
    "depth": "num_hidden_layers", "eps": "layer_norm_eps",
}  # fmt: skip
KIND = {"model_type": "bert", "hidden_act": "relu"}


def files_of(model: str) -> TeacherFiles:
    """The five files of a model, by option."""
    tables = "geneformer/geneformer/{}_gc104M.pkl"
    if model.startswith("V1"):
        tables = "geneformer/geneformer/gene_dictionaries_30m/{}_gc30M.pkl"
    files = {
        "checkpoint": f"geneformer/Geneformer-{model}/model.safetensors",
        "config": f"geneformer/Geneformer-{model}/config.json",
        "token_dictionary": tables.format("token_dictionary"),
        "gene_medians": tables.format("gene_median_dictionary"),
        "gene_mapping": tables.format("ensembl_mapping_dict"),
    }
    return TeacherFiles(SOURCE, files)


@dataclass(eq=False)
class Geneformer:
    """Geneformer's embedding of spots: 768 numbers with the real weights of V2-104M.

    It was trained elsewhere, so `fit` does nothing, and no split changes the embedding. Genes are
    found by Ensembl id, upper or lower case, without a version (ENSG00000141510, not …510.18). Ids
    that Ensembl has replaced count for the new one.

    It differs from the official code in what that leaves open. Rows keep their order. All columns
    of one gene are summed; there, two columns with exactly the same id are two tokens. Genes with
    the same value stand in the order of the vocabulary; there, the order depends on the machine.
    A spot with no expressed gene of the vocabulary is *unusable*; there, it stops the call (V2) or
    becomes NaN (V1).

    Attributes:
        model: `V1-10M`, `V2-104M`, `V2-104M_CLcancer` (trained on with cells of tumours) or
            `V2-316M`. It says which pinned files are taken (mirror, cache or download).
        checkpoint: a model.safetensors instead of the pinned one, also of a fine-tuned model.
        config: its config.json, which knows the number of heads.
        token_dictionary, gene_medians, gene_mapping: the three dictionaries, as pickles or JSON.
        gene_ids: the column of var with Ensembl ids; by default they are var_names.
        emb_mode: `cls` is the vector of the first token, which only V2 has; `cell` is the mean over
            genes; `auto` is `cls` where it exists, as upstream.
        emb_layer: -1 for the output of the second to last layer, 0 for that of the last one.
        unusable: `error`, or `drop`, which leaves NaN in X_teacher.
        min_genes: spots with fewer expressed genes of the vocabulary are unusable.
        tokens: largest number of tokens in a batch with padding, which bounds memory; a longer spot
            is a batch of its own. By default 32,768 on a GPU, and 4,096 (for the cache) on a CPU.
        precision: `float32`, or `bfloat16` (autocast).
        device: `cpu` or `cuda`; by default the best one.

    Raises:
        PekaError: a choice that does not exist, or no file at a path.
    """

    model: str = "V2-104M"
    checkpoint: str | Path | None = None
    config: str | Path | None = None
    token_dictionary: str | Path | None = None
    gene_medians: str | Path | None = None
    gene_mapping: str | Path | None = None
    gene_ids: str | None = None
    emb_mode: str = "auto"
    emb_layer: int = -1
    unusable: str = "error"
    min_genes: int = 0
    tokens: int | None = None
    precision: str = "float32"
    device: str | None = None

    description = (
        "Geneformer's encoder V1 or V2, 256-d, 768-d (default) or 1152-d with the real weights "
        "(0.04 to 1.3 GB), needs Ensembl ids and no fit; Apache-2.0; no access request known"
    )
    name, needs_fit = SOURCE, False
    gene_join = "outer"  # a gene that one section did not measure counts where it was measured
    modules: ClassVar[tuple[str, ...]] = ("models.geneformer", "models.geneformer_network")

    def __post_init__(self):
        self.pinned = files_of(str(self.model))
        settle_options(self, self.pinned, CHOICES)

    def _local(self, option: str) -> Path:
        """Local path of one of the five files; fetched and verified where it was not given."""
        return self.pinned.local(option, self.paths[option])

    # ---- files ---------------------------------------------------------------------------------

    @functools.cached_property
    def token_of(self) -> pd.Series:
        """Token of each name in the vocabulary: genes, <pad>, <mask>, and in V2 <cls> and <eos>."""
        path = self._local("token_dictionary")
        tokens = pd.Series(read_dictionary(path), dtype=np.int64)
        if "<pad>" not in tokens or not np.array_equal(np.sort(tokens), np.arange(len(tokens))):
            raise PekaError(f"{path}: expected <pad> and genes with the tokens 0, 1, …, each once")
        return tokens

    @functools.cached_property
    def gene_of(self) -> pd.Series:
        """Token of the gene that each Ensembl id names, ids of replaced genes included."""
        mapping = pd.Series(read_dictionary(self._local("gene_mapping")), dtype=object)
        return mapping.map(self.token_of).dropna().astype(np.int64)

    @functools.cached_property
    def medians(self) -> np.ndarray:
        """Median (V,) of each token's gene over Geneformer's corpus; NaN where there is no gene."""
        path = self._local("gene_medians")
        medians = pd.Series(read_dictionary(path), dtype=np.float64).reindex(self.token_of.index)
        genes = medians[~medians.index.str.startswith("<")]
        if not (genes > 0).all():
            first = genes.index[~(genes > 0)][0]
            tokens = self._local("token_dictionary")
            wanted = f"expected a median above 0 for each gene of {tokens}"
            raise PekaError(f"{path}: {wanted}, but not {first}: give files that fit")
        return medians.to_numpy()[np.argsort(self.token_of.to_numpy())]

    @property
    def special(self) -> bool:
        """Whether spots begin with <cls> and end with <eos>, as in V2."""
        return "<cls>" in self.token_of and "<eos>" in self.token_of

    @property
    def mode(self) -> str:
        """`cls` or `cell`; PekaError for `cls` where no spot has such a token."""
        if self.emb_mode == "cls" and not self.special:
            path = self._local("token_dictionary")
            raise PekaError(f"{path} has no <cls>, so emb_mode 'cls' is impossible: take 'cell'")
        return "cell" if self.emb_mode == "cell" or not self.special else "cls"

    @functools.cached_property
    def sizes(self) -> dict:
        """Sizes of the network, from config.json."""
        path = self._local("config")
        config = read_dictionary(path)
        missing = [key for key in SIZES.values() if key not in config]
        if missing or {key: config.get(key) for key in KIND} != KIND:
            found = f"it has no {', '.join(missing)}" if missing else f"not {KIND}"
            raise PekaError(f"{path}: expected Geneformer's config.json, but {found}")
        return {own: config[key] for own, key in SIZES.items()}

    @functools.cached_property
    def network(self):
        """The encoder on the device."""
        from .geneformer_network import build_network
        from .weight_files import load_safely

        path = self._local("checkpoint")
        network = build_network(
            self.sizes, load_safely(path), f"{path} and {self._local('config')}"
        )
        if (known := self.sizes["genes"]) != len(self.token_of):
            other = f"{self._local('token_dictionary')} has {len(self.token_of)}"
            raise PekaError(f"{path} knows {known} tokens, and {other}: give two files that fit")
        return network.to(self.device)

    # ---- tokens --------------------------------------------------------------------------------

    def columns(self, adata: anndata.AnnData) -> np.ndarray:
        """Token of the gene in each column (G,), -1 for none.

        Raises:
            PekaError: no such column of var, or no gene of the vocabulary in it.
        """
        var, wanted = adata.var, "Ensembl ids such as ENSG00000141510, without a version"
        if self.gene_ids and self.gene_ids not in var:
            there = f"columns that agree in all sections: {', '.join(map(str, var)) or 'none'}"
            step = f"name one with {wanted}, or write it into every section"
            raise PekaError(f"geneformer: no column {self.gene_ids!r} in var ({there}): {step}")
        tokens_in = lambda ids: pd.Index(ids).astype(str).str.upper().map(self.gene_of)
        names = var[self.gene_ids] if self.gene_ids else adata.var_names
        tokens = tokens_in(names)
        if not tokens.notna().any():
            place = f"var[{self.gene_ids!r}]" if self.gene_ids else "var_names"
            fits = [c for c in var if tokens_in(var[c]).notna().any()]
            step = "store them in a column of var in every section and name it in gene_ids"
            step = f"set gene_ids to {' or '.join(fits)}" if fits else step
            found = f"none of {len(names)} names ({', '.join(map(str, names[:3]))} …)"
            raise PekaError(
                f"geneformer: {found} in {place} is in its vocabulary; expected {wanted}: {step}"
            )
        return tokens.fillna(-1).to_numpy(np.int64)

    def values(self, adata: anndata.AnnData) -> sparse.csr_matrix:
        """What ranks a spot's genes, float64 (n, V): 1e4 count / total / median of the gene.

        The total is that of all columns; dividing by it changes no rank.

        Raises:
            PekaError: genes are not Ensembl ids, or values of X are no counts.
        """
        tokens, x = self.columns(adata), canonical(adata).astype(np.float64)
        if wrong := wrong_values(x.data, whole=True):
            raise PekaError(f"geneformer, X: {wrong}")
        known = np.flatnonzero(tokens >= 0)
        place = sparse.csr_matrix(
            (np.ones(len(known)), (known, tokens[known])), (len(tokens), len(self.token_of))
        )
        total = np.asarray(x.sum(1)).ravel()  # (n,)
        made = sparse.csr_matrix(x @ place)  # (n, G) @ (G, V); columns of one gene are summed
        made.eliminate_zeros()
        made.sort_indices()
        genes = np.diff(made.indptr)  # (n,)
        made.data = made.data / np.repeat(total, genes) * 1e4 / self.medians[made.indices]
        return made

    def tokenise(self, adata: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 (n, m) of spots, largest value first, padded with <pad>; lengths (n,)."""
        values = self.values(adata)
        lengths, front = self.lengths(np.diff(values.indptr)), int(self.special)
        ids = np.full((len(lengths), lengths.max()), self.token_of["<pad>"], np.int64)
        for row, length in enumerate(lengths):
            own = slice(*values.indptr[row : row + 2])
            order = np.argsort(-values.data[own], kind="stable")  # equal values: smaller token
            ids[row, front : length - front] = values.indices[own][order][: length - 2 * front]
        if self.special:
            ids[:, 0] = self.token_of["<cls>"]
            ids[np.arange(len(ids)), lengths - 1] = self.token_of["<eos>"]
        return ids, lengths

    def lengths(self, genes: np.ndarray) -> np.ndarray:
        """Tokens (n,) of spots with so many expressed genes; the lowest ranks may find no room."""
        ends = 2 * self.special
        return np.minimum(genes, self.sizes["positions"] - ends) + ends

    # ---- the teacher ---------------------------------------------------------------------------

    def fit(self, adata: anndata.AnnData) -> Self:
        """Do nothing: Geneformer comes trained."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Raw counts of spots, with Ensembl ids -> X_teacher float32 (n, d), in the given order.

        Spots that are dropped have NaN.

        Raises:
            PekaError: genes or values that cannot be right, or unusable spots that are an error.
        """
        import torch

        spots, mode = self.examine(adata), self.mode
        refuse_unusable(spots, self.unusable, "Geneformer")
        lengths = self.lengths(spots["genes"].to_numpy())
        rows = np.flatnonzero(spots["reason"] == "")
        rows = rows[
            np.argsort(-lengths[rows], kind="stable")
        ]  # longest first: memory peaks at once
        x_teacher = np.full((adata.n_obs, self.sizes["dim"]), np.nan, np.float32)
        kind, half = torch.device(self.device).type, self.precision == "bfloat16"
        with tqdm(total=len(rows), desc="Geneformer", unit="spot", disable=None) as bar:
            for some in budgeted(rows, lengths[rows], self.budget):
                batch = self.tokenise(adata[some])  # (b, m), (b,)
                ids, m = (torch.from_numpy(part).to(self.device) for part in batch)
                with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
                    vectors = self.network(ids, m, mode, self.emb_layer, self.special)  # (b, d)
                x_teacher[some] = vectors.cpu().numpy()
                bar.update(len(some))
        return x_teacher

    def examine(self, adata: anndata.AnnData) -> pd.DataFrame:
        """What is known of each spot, one row a spot.

        Columns: genes (expressed, in the vocabulary), and reason, empty where the spot is usable.

        Raises:
            PekaError: genes are not Ensembl ids, or values of X are no counts.
        """
        parts = (self.values(adata[i : i + BLOCK]) for i in range(0, adata.n_obs, BLOCK))
        genes = np.concatenate([np.diff(part.indptr) for part in parts])  # (n,)
        reasons = {"no expressed gene of the vocabulary": genes == 0}
        reasons[f"fewer than {self.min_genes} expressed genes"] = genes < self.min_genes
        reason = np.select(list(reasons.values()), list(reasons), "")
        return pd.DataFrame({"genes": genes, "reason": reason}, index=adata.obs_names)

    @staticmethod
    def dim(options: dict) -> int:
        """d_t with the real weights."""
        return DIMS[options.get("model", Geneformer.model)]

    @staticmethod
    def files(options: dict) -> list[str]:
        """The files of the manifest that the options do not replace."""
        return files_of(options.get("model", Geneformer.model)).wanted(options)

    @staticmethod
    def named_options(options: dict) -> dict:
        """Options that can change a number, with digests in place of paths; they name a unit."""
        return files_of(options.get("model", Geneformer.model)).named(options, WITHOUT_EFFECT)

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings, digests, licence, and how many spots are used whole, for uns["teacher"]."""
        spots = self.examine(adata)
        genes = spots["genes"].to_numpy()
        settings = {name: getattr(self, name) for name in (*CHOICES, "min_genes")}
        digests = self.pinned.digests(self.paths).items()
        return settings | {
            "emb_mode": self.mode,
            "gene_ids": self.gene_ids or "var_names",
            **{f"{option}_sha256": digest for option, digest in digests},
            "license": self.pinned.license,
            "n_genes_in_vocabulary": len({*self.columns(adata)} - {-1}),
            "n_cut_off": int((self.lengths(genes) < genes + 2 * self.special).sum()),
            **usable_facts(spots),
        }


class _NumbersAndText(pickle.Unpickler):
    """Reads numbers and text, also those of numpy, and runs nothing that a file names."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return lambda dtype, raw: np.frombuffer(raw, dtype)[0]
        raise pickle.UnpicklingError(f"it holds more than numbers and text ({module}.{name})")


def read_dictionary(path: Path) -> dict:
    """A pickled dictionary with names as keys, or one in JSON; nothing in the file is run.

    Raises:
        PekaError: another kind of file, or a damaged one.
    """
    found, why = None, ""
    try:
        if what_is(path) == PICKLE:
            with open(path, "rb") as handle:
                found = _NumbersAndText(handle).load()
        else:
            with contextlib.suppress(UnicodeDecodeError):
                found = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # a damaged pickle raises nearly anything
        why = f" {error}"
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        what = why or what_is(path) or type(found).__name__
        raise PekaError(f"{path}: expected a dictionary of names (pickle or JSON), but {what}")
    return found
