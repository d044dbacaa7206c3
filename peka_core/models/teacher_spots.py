"""What teachers with a network ask of the spots that they are given."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.errors import PekaError


def canonical(adata: anndata.AnnData) -> sparse.csr_matrix:
    """Values (n, G) as CSR, with each entry once and the columns of a row in order."""
    is_csr = sparse.issparse(adata.X) and adata.X.format == "csr"
    x = adata.X if is_csr else sparse.csr_matrix(adata.X)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def wrong_values(values: np.ndarray, whole: bool) -> str:
    """Why values cannot be counts (`whole`) or their logarithms; empty if they can."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        return f"values run from {low:g} to {high:g}; expected finite values, none below 0"
    if whole and (values % 1).any():
        return "some values are no whole numbers, but raw counts are expected"
    return ""


def known_genes(names: pd.Index, vocabulary: pd.Index, title: str, kind: str) -> np.ndarray:
    """Which genes (G,) are in a teacher's vocabulary; names must be equal, case included.

    Args:
        title: of the teacher, for the message.
        kind: what the vocabulary's names are, `gene symbols`.
    """
    known = names.isin(vocabulary)
    if not known.any():
        found = f"none of {len(names)} genes ({', '.join(map(str, names[:3]))} …)"
        raise PekaError(f"{found} is in {title}'s vocabulary: var_names must be {kind}")
    return known


def refuse_twice(names: pd.Index) -> None:
    """Refuse genes (g,) of the vocabulary that come more than once."""
    twice = names[names.duplicated()].unique()
    if len(twice):
        found = f"{len(twice)} genes of the vocabulary come more than once"
        raise PekaError(f"{found} ({', '.join(twice[:5])}): sum or choose their columns first")


def refuse_unusable(spots: pd.DataFrame, unusable: str, title: str) -> None:
    """Stop where unusable spots are an error, or where no spot is usable.

    Args:
        spots: one row a spot, with a reason, which is empty where the spot is usable.
        unusable: `error` or `drop`.
    """
    bad = spots["reason"] != ""
    if bad.any() and (unusable == "error" or bad.all()):
        numbers = spots["reason"][bad].value_counts().items()
        why = "; ".join(f"{reason}: {n}" for reason, n in numbers)
        step = "look at the counts" if bad.all() else "remove them, or set unusable to drop"
        which = f"{bad.sum()} of {len(spots)} spots, {spots.index[bad][0]} first"
        raise PekaError(f"{title} cannot embed {which} ({why}): {step}")


def usable_facts(spots: pd.DataFrame) -> dict:
    """How many spots are usable, and how many are left out for which reason."""
    numbers = spots["reason"].value_counts().items()
    return {
        "n_usable": int((spots["reason"] == "").sum()),
        "dropped": {reason: int(n) for reason, n in numbers if reason},
    }


def check_choices(title: str, teacher, choices: dict[str, tuple]) -> None:
    """Refuse an option of a teacher that has a value which does not exist."""
    for option, known in choices.items():
        if (value := getattr(teacher, option)) not in known:
            raise PekaError(f"{title}: {option} {value!r} is unknown: {', '.join(map(str, known))}")
