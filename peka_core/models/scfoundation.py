"""The teacher of the paper, scFoundation: raw counts -> tokens -> its encoder -> X_teacher (n, 3072) with the real weights.

A spot's tokens are its expressed genes of the vocabulary (19,264 symbols), in the vocabulary's order, then two totals: T,
the depth that the model is asked to imagine, and S, the depth that was measured. The network is in scfoundation_network.py
and is imported when the first spot is embedded. Differences from the authors' code are told in `ScFoundation`.
"""

import functools
import os
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from ..device import best_device
from ..downloads.fetch import fetch
from ..downloads.manifest import load_manifest, source_files
from ..errors import PekaError
from ..files import sha256_once, what_is
from ..layout.gene_columns import on_genes

SOURCE = "scfoundation"
FILES = {
    "checkpoint": "scfoundation/models.ckpt",
    "vocabulary": "scfoundation/OS_scRNA_gene_index.19264.tsv",
}
ASIDE = ("tokens", "device")  # options that change no number
CHOICES = {
    "mode": ("cell", "gene", "rde"), "pre_normalized": ("F", "T", "A"), "pool": ("all", "max"),
    "unusable": ("error", "drop"), "precision": ("float32", "bfloat16"),
}  # fmt: skip
AUTHORS = {
    "mode": "gene",
    "pre_normalized": "F",
    "target": "f1",
    "pool": "all",
    "precision": "float32",
}
LARGEST = np.log1p(1e4)  # a normalised value: all counts of a spot in one gene
MASK_VALUE = 102.0  # from here on a value would mean mask or padding to the network
ALIKE = 0.9  # shortest spot of a batch, as a share of its longest
QC_GENES = 200  # expressed genes of the vocabulary that scFoundation's authors asked of their training cells


class ScFoundation:
    """scFoundation's embedding of spots; it was trained elsewhere, so `fit` learns nothing, and no split changes it.

    Genes are found by name, so the order of columns is free. Where the authors' code stops, or gives a spot the vector of
    the one before, the spot is *unusable* here: no expressed gene of the vocabulary, a total of 1 or less (S <= 0), or
    T <= 0. PEKA's code takes mode `gene`, `F`, `f1`, `all`: the defaults.

    Args:
        checkpoint: models.ckpt; by default the pinned file (mirror, cache or download).
        vocabulary: OS_scRNA_gene_index.19264.tsv; by default the pinned file.
        mode: which of the file's three sets of weights: `cell`, `gene` or `rde` (read-depth enhancement).
        pre_normalized: `F`, raw counts, which become ln(1 + 1e4 c / total over the vocabulary); `T`, values that are so
            already, their sum taken as total, as upstream does; `A`, such values with the raw total over the vocabulary
            in obs["vocab_total"].
        target: T: `t4` is 4, `f1` log10 of 1 x the total, `a5` S + 5.
        pool: `all`, [S | T | maximum over genes | mean over genes], 4 d; or `max`, over all tokens, d.
        unusable: `error`, or `drop`: NaN in X_teacher.
        min_genes: spots with fewer expressed genes of the vocabulary are unusable; 200 is the quality control of
            scFoundation's authors (of their training cells; PEKA's code asks for no more than one count).
        tokens: budget of a batch, padding included; what bounds memory. A longer spot is a batch of its own. By default 32,768 on
            a GPU, and on a CPU 4,096, which its cache likes best.
        precision: `float32`, or `bfloat16` (autocast).
        device: `cpu` or `cuda`; the best one where None.

    Raises:
        PekaError: a choice that does not exist, or no file at a path.
    """

    about = (
        "scFoundation's encoder, 3072-d with the real weights (1.4 GB), fits nothing; code and vocabulary Apache-2.0, "
        "weights for non-commercial research only; no gate known"
    )
    learns, join = (
        False,
        "outer",
    )  # a gene that one section did not measure still counts where it was measured

    def __init__(
        self, checkpoint: str | Path | None = None, vocabulary: str | Path | None = None, mode: str = "gene",
        pre_normalized: str = "F", target: str = "f1", pool: str = "all", unusable: str = "error", min_genes: int = 0,
        tokens: int | None = None, precision: str = "float32", device: str | None = None,
    ):  # fmt: skip
        self.name, self.mode, self.pre_normalized, self.target, self.pool = (
            SOURCE,
            mode,
            pre_normalized,
            target,
            pool,
        )
        self.unusable, self.min_genes, self.precision = unusable, min_genes, precision
        self.device = device or best_device()
        self.tokens = tokens or (4_096 if str(self.device) == "cpu" else 32_768)
        for option, known in CHOICES.items():
            if getattr(self, option) not in known:
                raise PekaError(
                    f"scfoundation: {option} {getattr(self, option)!r} is unknown: {', '.join(known)}"
                )
        found = re.fullmatch(r"([tfa])(-?\d+(?:\.\d+)?)", target)
        if not found:
            raise PekaError(
                f"scfoundation: target {target!r} is not t, f or a with a number, as in t4, f1 or a5"
            )
        self.rule, self.number = found[1], float(found[2])
        self.paths = {"checkpoint": checkpoint, "vocabulary": vocabulary}
        for option, path in self.paths.items():
            if path:
                given_file(option, path)

    def _local(self, option: str) -> Path:
        """Local path of checkpoint or vocabulary; fetched and verified where it was not given."""
        return Path(self.paths[option] or fetch(source_files(SOURCE, [FILES[option]]))[0])

    @functools.cached_property
    def symbols(self) -> pd.Index:
        """The vocabulary, (19264,)."""
        path = self._local("vocabulary")
        try:
            table = pd.read_csv(path, sep="\t", keep_default_na=False)
        except (
            ValueError
        ) as error:  # no text, no columns, ragged lines: pandas' own errors are of this kind
            found = what_is(path) or "no text in UTF-8"
            raise PekaError(
                f"{path}: expected a table with columns gene_name, index, but it is {found}; give scFoundation's own file"
            ) from error
        fine = (
            list(table) == ["gene_name", "index"]
            and table["gene_name"].is_unique
            and (table["index"] == table.index).all()
        )
        if not fine:
            raise PekaError(
                f"{path}: expected columns gene_name, index; names once each, index 0, 1, 2 …; give scFoundation's own file"
            )
        return pd.Index(table["gene_name"])

    @functools.cached_property
    def network(self):
        """The encoder of this mode, on the device."""
        from .scfoundation_network import build_network, read_checkpoint

        path = self._local("checkpoint")
        network = build_network(read_checkpoint(path, self.mode), f"{path}, mode {self.mode}")
        if network.pos_emb.num_embeddings != len(self.symbols) + 3:  # T, S, padding
            known, other = network.pos_emb.num_embeddings - 3, self._local("vocabulary")
            raise PekaError(
                f"{path} knows {known} genes, the vocabulary {other} has {len(self.symbols)}: take a pair"
            )
        return network.to(self.device)

    def fit(self, adata: anndata.AnnData) -> "ScFoundation":
        """Does nothing: scFoundation comes trained."""
        return self

    def embed(self, adata: anndata.AnnData) -> np.ndarray:
        """Counts of spots (as `pre_normalized` says), symbols in var_names -> X_teacher float32 (n, 4 d or d), NaN if dropped.

        Raises:
            PekaError: genes or values that cannot be right, or unusable spots where these are an error.
        """
        import torch

        spots = self.examine(adata)
        self._refuse(spots)
        rows = np.flatnonzero(spots["reason"] == "")
        rows = rows[
            np.argsort(-spots["genes"].to_numpy()[rows], kind="stable")
        ]  # longest first: memory peaks at once
        width = self.network.pos_emb.embedding_dim * (4 if self.pool == "all" else 1)
        x_teacher = np.full((adata.n_obs, width), np.nan, np.float32)
        with tqdm(total=len(rows), desc="scFoundation", unit="spot", disable=None) as bar:
            for some in budgeted(rows, spots["genes"].to_numpy()[rows] + 2, self.tokens):
                values, ids, lengths = (
                    torch.from_numpy(part) for part in self.tokenise(adata[some], spots.iloc[some])
                )
                with torch.inference_mode(), self._autocast():
                    vectors = self.network(
                        values.to(self.device), ids.to(self.device), lengths, self.pool
                    )  # (b, width)
                x_teacher[some] = vectors.cpu().numpy()
                bar.update(len(some))
        return x_teacher

    def _autocast(self):
        import torch

        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

    def examine(self, adata: anndata.AnnData) -> pd.DataFrame:
        """Of each spot: genes (expressed, in the vocabulary), total (over the vocabulary), s, t, and reason ("" where usable).

        Raises:
            PekaError: no gene of the vocabulary, one of them twice, or values that are no counts (no logarithms).
        """
        known = self._known(adata.var_names)
        x = _checked(adata, known, self.pre_normalized)
        genes = (x > 0) @ known.astype(np.int64)  # (n, G) @ (G,)
        total = self._totals(adata, x, known)
        with np.errstate(divide="ignore", invalid="ignore"):
            s = np.log10(total)
            t = {
                "t": np.full_like(s, self.number),
                "f": np.log10(total * self.number),
                "a": s + self.number,
            }[self.rule]
        if (t >= MASK_VALUE).any():
            raise PekaError(
                f"scfoundation: target {self.target!r} makes T {t.max():g}; it must stay below {MASK_VALUE:g}"
            )
        reasons = {
            "no expressed gene of the vocabulary": genes == 0, "total of 1 or less": ~(s > 0), "T of 0 or less": ~(t > 0),
            f"fewer than {self.min_genes} expressed genes of the vocabulary": genes < self.min_genes,
        }  # fmt: skip
        reason = np.select(list(reasons.values()), list(reasons), "")
        return pd.DataFrame(
            {"genes": genes, "total": total, "s": s, "t": t, "reason": reason},
            index=adata.obs_names,
        )

    def _known(self, names: pd.Index) -> np.ndarray:
        """Which genes are in the vocabulary, bool (G,); exact symbols, case included."""
        known = names.isin(self.symbols)
        if not known.any():
            first = ", ".join(map(str, names[:3]))
            raise PekaError(
                f"none of {len(names)} genes ({first} …) is in scFoundation's vocabulary: var_names must be gene symbols"
            )
        twice = names[known][names[known].duplicated()].unique()
        if len(twice):
            some = ", ".join(twice[:5])
            raise PekaError(
                f"{len(twice)} genes of the vocabulary come more than once ({some}): sum or choose their columns first"
            )
        return known

    def _totals(
        self, adata: anndata.AnnData, x: sparse.csr_matrix, known: np.ndarray
    ) -> np.ndarray:
        """What S is the logarithm of, (n,)."""
        if self.pre_normalized != "A":
            return x @ known.astype(np.float64)
        if "vocab_total" not in adata.obs:
            raise PekaError(
                "scfoundation: pre_normalized 'A' needs raw totals over the vocabulary in obs['vocab_total']"
            )
        return adata.obs["vocab_total"].to_numpy(np.float64)

    def _refuse(self, spots: pd.DataFrame) -> None:
        """Stop where spots are unusable and that is an error, or where nothing is left."""
        bad = spots["reason"] != ""
        if bad.any() and (self.unusable == "error" or bad.all()):
            counts = "; ".join(
                f"{reason}: {n}" for reason, n in spots["reason"][bad].value_counts().items()
            )
            step = "look at the counts" if bad.all() else "remove them, or set unusable to drop"
            which = f"{bad.sum()} of {len(spots)} spots, {spots.index[bad][0]} first"
            raise PekaError(f"scFoundation cannot embed {which} ({counts}): {step}")

    def tokenise(
        self, adata: anndata.AnnData, spots: pd.DataFrame
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed tokens of usable spots: values float32 (N,), ids int64 (N,), lengths int64 (b,); see scfoundation_network.

        Args:
            spots: what `examine` says of them.
        """
        x = on_genes(
            sparse.csr_matrix(adata.X, dtype=np.float64), adata.var_names, self.symbols
        ).copy()  # (b, 19264)
        x.sum_duplicates()  # also sorts each spot's genes into the vocabulary's order
        x.eliminate_zeros()
        genes = np.diff(x.indptr)  # (b,)
        scaled = (
            np.log1p(x.data / np.repeat(spots["total"].to_numpy(), genes) * 1e4)
            if self.pre_normalized == "F"
            else x.data
        )
        lengths = genes.astype(np.int64) + 2
        ends = lengths.cumsum()
        values, ids = np.empty(ends[-1], np.float32), np.empty(ends[-1], np.int64)
        is_gene = np.ones(ends[-1], bool)
        is_gene[ends - 2] = is_gene[ends - 1] = False
        values[is_gene], values[ends - 2], values[ends - 1] = scaled, spots["t"], spots["s"]
        ids[is_gene], ids[ends - 2], ids[ends - 1] = (
            x.indices,
            len(self.symbols),
            len(self.symbols) + 1,
        )
        return values, ids, lengths

    def facts(self, adata: anndata.AnnData) -> dict:
        """Settings, digests, licence, and how many spots each choice keeps, for uns["teacher"]."""
        spots = self.examine(adata)
        fine = spots["reason"].isin(
            ["", f"fewer than {self.min_genes} expressed genes of the vocabulary"]
        )
        settings = {name: getattr(self, name) for name in ("target", *CHOICES, "min_genes")}
        return settings | {
            **{f"{option}_sha256": digest for option, digest in digests(self.paths).items()},
            "license": _source()["license"], "n_genes_in_vocabulary": int(self._known(adata.var_names).sum()),
            "n_usable": int((spots["reason"] == "").sum()),
            "dropped": {reason: int(n) for reason, n in spots["reason"].value_counts().items() if reason},
            "n_kept_by_min_genes": {str(m): int((fine & (spots["genes"] >= m)).sum()) for m in (0, QC_GENES)},
        }  # fmt: skip


def fetch_files(options: dict, dry_run: bool = False) -> list[Path]:
    """Download and verify (or find in PEKA_MIRROR) those of the two files that the options do not give; or list them."""
    wanted = [file for option, file in FILES.items() if not options.get(option)]
    return fetch(source_files(SOURCE, wanted), dry_run)


def given_file(option: str, path: str | Path) -> Path:
    """The user's checkpoint or vocabulary; PekaError where it is not there or may not be read."""
    if not Path(path).is_file():
        name = Path(FILES[option]).name
        raise PekaError(
            f"scfoundation: no {option} at {path}; give the path of {name}, or none to fetch it"
        )
    if not os.access(path, os.R_OK):
        raise PekaError(
            f"{path}: this {option} may not be read: ask its owner for the permission, or give none to fetch it"
        )
    return Path(path)


def digests(paths: dict) -> dict[str, str]:
    """sha256 of checkpoint and vocabulary: of the files at the given paths, else as pinned (then no file is needed)."""
    pinned = lambda file: _source()["files"][file]["sha256"]
    given = lambda option: sha256_once(given_file(option, paths[option]))
    return {
        option: given(option) if paths.get(option) else pinned(file)
        for option, file in FILES.items()
    }


def as_authors(options: dict) -> bool:
    """Whether options embed spots as PEKA's authors do, with the pinned files (a local copy of them too), and the quality control of
    their text or of their code."""
    mine = {name: options.get(name, value) for name, value in AUTHORS.items()}
    return (
        mine == AUTHORS
        and options.get("min_genes", 0) in (0, QC_GENES)
        and digests(options) == digests({})
    )


def named_options(options: dict) -> dict:
    """Options as they name a unit: digests instead of paths, without those that change no number."""
    return {
        name: value for name, value in options.items() if name not in (*ASIDE, *FILES)
    } | digests(options)


@functools.lru_cache
def _source() -> dict:
    """scFoundation's entry in the manifest."""
    return load_manifest()["sources"][SOURCE]


def _checked(adata: anndata.AnnData, known: np.ndarray, pre_normalized: str) -> sparse.csr_matrix:
    """Values (n, G) as they are, CSR; refused where those of known genes (G,) cannot be counts, or cannot be logarithms."""
    x = (
        adata.X
        if sparse.issparse(adata.X) and adata.X.format == "csr"
        else sparse.csr_matrix(adata.X)
    )
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    values = x.data[known[x.indices]]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise PekaError(
            f"scfoundation: values run from {low:g} to {high:g}; expected finite values, none below 0"
        )
    if pre_normalized == "F" and (values % 1).any():
        raise PekaError(
            "scfoundation: some values are no whole numbers; pre_normalized 'F' expects raw counts, 'T' or 'A' their logarithms"
        )
    if pre_normalized != "F" and high > LARGEST * (1 + 1e-6):
        raise PekaError(
            f"scfoundation: a value of {high:g} is no ln(1 + 1e4 c / total), which ends at {LARGEST:.2f}; raw counts take 'F'"
        )
    return x


def budgeted(rows: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Batches of rows, longest first, at least one row each.

    Padded to its longest row, a batch has at most `tokens` tokens; no row is shorter than `ALIKE` of it, since attention's work
    on padding grows with the square.
    """
    batches, start = [], 0
    while start < len(rows):
        alike = np.searchsorted(-lengths, -ALIKE * lengths[start], "right") - start
        size = max(1, min(int(tokens // lengths[start]), alike))
        batches.append(rows[start : start + size])
        start += size
    return batches
