"""The teacher of the paper, scFoundation: raw counts -> tokens -> its encoder -> X_teacher.

The tokens of a spot are its expressed genes of the vocabulary (19,264 symbols), in the order of the
vocabulary, then two totals: T, the depth that the model is asked to imagine, and S, the depth that
was measured. The network is in scfoundation_network.py and is imported when spots are embedded.
`ScFoundation` says where this differs from the authors' code.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from ..common.errors import PekaError
from ..common.file_kinds import what_is
from ..layout.gene_columns import on_genes
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

SOURCE = "scfoundation"
FILES = {
    "checkpoint": "scfoundation/models.ckpt",
    "vocabulary": "scfoundation/OS_scRNA_gene_index.19264.tsv",
}
PINNED = TeacherFiles(SOURCE, FILES)
CHOICES = {
    "mode": ("cell", "gene", "rde"), "pre_normalized": ("F", "T", "A"), "pool": ("all", "max"),
    "unusable": ("error", "drop"), "precision": ("float32", "bfloat16"),
}  # fmt: skip
AUTHORS = {
    "mode": "gene", "pre_normalized": "F", "target": "f1", "pool": "all", "precision": "float32",
}  # fmt: skip
DIM = 768  # width of the real network
WITHOUT_EFFECT = ("tokens", "device")  # options that change no number
LARGEST = np.log1p(1e4)  # a normalised value: all counts of a spot in one gene
MASK_VALUE = 102.0  # from here on, the network takes a value for a mask or padding
QC_GENES = 200  # expressed genes of the vocabulary that scFoundation's authors asked of a cell


@dataclass(eq=False)
class ScFoundation:
    """scFoundation's embedding of spots: 3072 numbers with the real weights.

    It was trained elsewhere, so `fit` does nothing, and no split changes the embedding. Genes are
    found by name, so the order of columns is free. A spot is *unusable* where the authors' code
    stops, or gives it the vector of the spot before: it has no expressed gene of the vocabulary, a
    total of 1 or less (S <= 0), or T <= 0. The defaults are those of PEKA's code.

    Attributes:
        checkpoint: models.ckpt; by default the pinned file (mirror, cache or download).
        vocabulary: OS_scRNA_gene_index.19264.tsv; by default the pinned file.
        mode: which of the three sets of weights in the file: `cell`, `gene` or `rde` (read-depth
            enhancement).
        pre_normalized: `F` for raw counts, which become ln(1 + 1e4 c / total over the vocabulary);
            `T` for values that are so already, whose sum is taken as the total, as upstream does;
            `A` for such values with the raw total over the vocabulary in obs["vocab_total"].
        target: T. `t4` is 4, `f1` is log10 of 1 x the total, `a5` is S + 5.
        pool: `all` is [S | T | maximum and mean over genes], 4 d; `max` is over all tokens, d.
        unusable: `error`, or `drop`, which leaves NaN in X_teacher.
        min_genes: spots with fewer expressed genes of the vocabulary are unusable. scFoundation's
            authors asked 200 of their training cells, PEKA's code asks for one count.
        tokens: largest number of tokens in a batch with padding, which bounds memory; a longer spot
            is a batch of its own. By default 32,768 on a GPU, and 4,096 (for the cache) on a CPU.
        precision: `float32`, or `bfloat16` (autocast).
        device: `cpu` or `cuda`; by default the best one.

    Raises:
        PekaError: a choice that does not exist, or no file at a path.
    """

    checkpoint: str | Path | None = None
    vocabulary: str | Path | None = None
    mode: str = "gene"
    pre_normalized: str = "F"
    target: str = "f1"
    pool: str = "all"
    unusable: str = "error"
    min_genes: int = 0
    tokens: int | None = None
    precision: str = "float32"
    device: str | None = None

    description = (
        "scFoundation's encoder, 3072-d with the real weights (1.4 GB), needs no fit; code and "
        "vocabulary Apache-2.0, weights for non-commercial research only; no access request known"
    )
    name, needs_fit = SOURCE, False
    gene_join = "outer"  # a gene that one section did not measure counts where it was measured
    modules: ClassVar[tuple[str, ...]] = ("models.scfoundation", "models.scfoundation_network")

    def __post_init__(self):
        settle_options(self, PINNED, CHOICES)
        found = re.fullmatch(r"([tfa])(-?\d+(?:\.\d+)?)", self.target)
        if not found:
            expected = "t, f or a with a number, as in t4, f1 or a5"
            raise PekaError(f"scfoundation: target {self.target!r} is not {expected}")
        self.rule, self.number = found[1], float(found[2])

    def _local(self, option: str) -> Path:
        """Local path of checkpoint or vocabulary; fetched and verified where it was not given."""
        return PINNED.local(option, self.paths[option])

    @functools.cached_property
    def symbols(self) -> pd.Index:
        """The vocabulary, (19264,)."""
        path, columns = self._local("vocabulary"), ["gene_name", "index"]
        expected = f"{path}: expected columns gene_name (each name once), index (0, 1, …)"
        try:
            table = pd.read_csv(path, sep="\t", keep_default_na=False)
        except ValueError as error:  # no text, no columns or ragged lines: pandas' errors are such
            found = what_is(path) or "no text in UTF-8"
            raise PekaError(f"{expected}, but it is {found}; give scFoundation's file") from error
        fine = list(table) == columns and table["gene_name"].is_unique
        if not fine or (table["index"] != table.index).any():
            raise PekaError(f"{expected}; give scFoundation's file")
        return pd.Index(table["gene_name"])

    @functools.cached_property
    def network(self):
        """The encoder of this mode, on the device."""
        from .scfoundation_network import build_network, read_checkpoint

        path = self._local("checkpoint")
        network = build_network(read_checkpoint(path, self.mode), f"{path}, mode {self.mode}")
        known = network.pos_emb.num_embeddings - 3  # T, S, padding
        if known != len(self.symbols):
            other = f"the vocabulary {self._local('vocabulary')} has {len(self.symbols)}"
            raise PekaError(f"{path} knows {known} genes, and {other}: give two files that fit")
        return network.to(self.device)

    def fit(self, adata: anndata.AnnData) -> Self:
        """Do nothing: scFoundation comes trained."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Counts of spots, with gene symbols in var_names -> X_teacher float32 (n, 4 d or d).

        Spots that are dropped have NaN.

        Raises:
            PekaError: genes or values that cannot be right, or unusable spots that are an error.
        """
        import torch

        spots = self.examine(adata)
        refuse_unusable(spots, self.unusable, "scFoundation")
        genes, rows = spots["genes"].to_numpy(), np.flatnonzero(spots["reason"] == "")
        rows = rows[np.argsort(-genes[rows], kind="stable")]  # longest first: memory peaks at once
        width = self.network.pos_emb.embedding_dim * (4 if self.pool == "all" else 1)
        x_teacher = np.full((adata.n_obs, width), np.nan, np.float32)
        with tqdm(total=len(rows), desc="scFoundation", unit="spot", disable=None) as bar:
            for some in budgeted(rows, genes[rows] + 2, self.budget):
                packed = self.tokenise(adata[some], spots.iloc[some])
                values, ids, lengths = (torch.from_numpy(part) for part in packed)
                values, ids = values.to(self.device), ids.to(self.device)
                with torch.inference_mode(), self._autocast():
                    vectors = self.network(values, ids, lengths, self.pool)  # (b, width)
                x_teacher[some] = vectors.cpu().numpy()
                bar.update(len(some))
        return x_teacher

    def _autocast(self):
        import torch

        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    def examine(self, adata: anndata.AnnData) -> pd.DataFrame:
        """What is known of each spot, one row a spot.

        Columns: genes (expressed, in the vocabulary), total (over the vocabulary), s, t, and
        reason, which is empty where the spot is usable.

        Raises:
            PekaError: no gene of the vocabulary, one of them twice, or values that are no counts
                (no logarithms).
        """
        known = self._known(adata.var_names)
        x = _checked(adata, known, self.pre_normalized)
        genes = (x > 0) @ known.astype(np.int64)  # (n, G) @ (G,)
        total = self._totals(adata, x, known)
        with np.errstate(divide="ignore", invalid="ignore"):
            s = np.log10(total)
            by_rule = {
                "t": np.full_like(s, self.number),
                "f": np.log10(total * self.number),
                "a": s + self.number,
            }
        t = by_rule[self.rule]
        if (t >= MASK_VALUE).any():
            limit = f"it must stay below {MASK_VALUE:g}"
            raise PekaError(f"scfoundation: target {self.target!r} makes T {t.max():g}; {limit}")
        reasons = {
            "no expressed gene of the vocabulary": genes == 0, "total of 1 or less": ~(s > 0),
            "T of 0 or less": ~(t > 0), self._too_few: genes < self.min_genes,
        }  # fmt: skip
        reason = np.select(list(reasons.values()), list(reasons), "")
        table = {"genes": genes, "total": total, "s": s, "t": t, "reason": reason}
        return pd.DataFrame(table, index=adata.obs_names)

    @property
    def _too_few(self) -> str:
        return f"fewer than {self.min_genes} expressed genes of the vocabulary"

    def _known(self, names: pd.Index) -> np.ndarray:
        """Which genes are in the vocabulary, bool (G,); exact symbols, case included."""
        known = known_genes(names, self.symbols, "scFoundation", "gene symbols")
        refuse_twice(names[known])
        return known

    def _totals(
        self, adata: anndata.AnnData, x: sparse.csr_matrix, known: np.ndarray
    ) -> np.ndarray:
        """What S is the logarithm of, (n,)."""
        if self.pre_normalized != "A":
            return x @ known.astype(np.float64)
        if "vocab_total" not in adata.obs:
            needed = "needs raw totals over the vocabulary in obs['vocab_total']"
            raise PekaError(f"scfoundation: pre_normalized 'A' {needed}")
        return adata.obs["vocab_total"].to_numpy(np.float64)

    def tokenise(
        self, adata: anndata.AnnData, spots: pd.DataFrame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed tokens of usable spots, as scfoundation_network wants them.

        Args:
            spots: what `examine` says of them.

        Returns:
            values float32 (N,), ids int64 (N,), and lengths int64 (b,).
        """
        counts = sparse.csr_matrix(adata.X, dtype=np.float64)
        x = on_genes(counts, adata.var_names, self.symbols).copy()  # (b, 19264)
        x.sum_duplicates()  # also sorts each spot's genes into the vocabulary's order
        x.eliminate_zeros()
        genes, scaled = np.diff(x.indptr), x.data  # (b,), (N - 2 b,)
        if self.pre_normalized == "F":
            scaled = np.log1p(x.data / np.repeat(spots["total"].to_numpy(), genes) * 1e4)
        lengths = genes.astype(np.int64) + 2
        ends = lengths.cumsum()
        t, s = ends - 2, ends - 1  # where each spot has them
        is_gene = np.ones(ends[-1], bool)
        is_gene[t] = is_gene[s] = False
        values, ids = np.empty(ends[-1], np.float32), np.empty(ends[-1], np.int64)
        values[is_gene], values[t], values[s] = scaled, spots["t"], spots["s"]
        ids[is_gene], ids[t], ids[s] = x.indices, len(self.symbols), len(self.symbols) + 1
        return values, ids, lengths

    @staticmethod
    def dim(options: dict) -> int:
        """d_t with the real weights."""
        return DIM * (4 if options.get("pool", "all") == "all" else 1)

    @staticmethod
    def files(options: dict) -> list[str]:
        """The files of the manifest that the options do not replace."""
        return PINNED.wanted(options)

    @staticmethod
    def named_options(options: dict) -> dict:
        """Options that can change a number, with digests in place of paths; they name a unit."""
        return PINNED.named(options, WITHOUT_EFFECT)

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings, digests, licence, and how many spots each choice keeps, for uns["teacher"]."""
        spots = self.examine(adata)
        fine, genes = spots["reason"].isin(["", self._too_few]), spots["genes"]
        settings = {name: getattr(self, name) for name in ("target", *CHOICES, "min_genes")}
        return settings | {
            **{f"{option}_sha256": digest for option, digest in PINNED.digests(self.paths).items()},
            "license": PINNED.license,
            "n_genes_in_vocabulary": int(self._known(adata.var_names).sum()),
            **usable_facts(spots),
            "n_kept_by_min_genes": {
                str(m): int((fine & (genes >= m)).sum()) for m in (0, QC_GENES)
            },
        }


def as_authors(options: dict) -> bool:
    """Whether options embed spots as PEKA's authors do: with the pinned files, or copies of them.

    `min_genes` may be that of their text or of their code.
    """
    mine = {name: options.get(name, value) for name, value in AUTHORS.items()}
    same_files = PINNED.digests(options) == PINNED.digests({})
    return mine == AUTHORS and options.get("min_genes", 0) in (0, QC_GENES) and same_files


def _checked(adata: anndata.AnnData, known: np.ndarray, pre_normalized: str) -> sparse.csr_matrix:
    """Values (n, G) as CSR.

    Raises:
        PekaError: those of the known genes (G,) cannot be counts, or cannot be logarithms.
    """
    x = canonical(adata)
    values = x.data[known[x.indices]]
    wrong = wrong_values(values, whole=pre_normalized == "F")
    high = values.max() if len(values) else 0.0
    if not wrong and pre_normalized != "F" and high > LARGEST * (1 + 1e-6):
        known_form = f"ln(1 + 1e4 c / total) ends at {LARGEST:.2f}"
        wrong = f"found a value of {high:g}, but {known_form}; for raw counts take 'F'"
    if wrong:
        raise PekaError(f"scfoundation, pre_normalized {pre_normalized!r}: {wrong}")
    return x
