"""Leaks of a split, counted by hand on a small grid."""

import numpy as np
import pytest

from peka_core.cohort import Split, open_cohort
from peka_core.protocols import PROTOCOLS
from peka_core.studies.leaks import leaks_of_splits, without_leaks


def test_leaks_are_counted_by_hand(tiny_cohort):
    """Spots stand 4 x 3 in a section; neighbours are one step away, also diagonally."""
    cohort = open_cohort(tiny_cohort)
    n = len(cohort.obs)
    hashes = np.arange(n, dtype=np.uint64)
    hashes[n - 1] = 0  # the last spot is a copy of the first
    test = np.isin(np.arange(n), [0, n - 1])
    table = leaks_of_splits(cohort, [Split("spots/0", ~test, test)], hashes).iloc[0]
    assert list(table[["test", "copies", "neighbours", "patients_shared"]]) == [2, 0, 2, 2]
    test = np.arange(n) == 0
    split = Split("spots/0", ~test, test)
    assert leaks_of_splits(cohort, [split], hashes).iloc[0]["copies"] == 1
    own = (cohort.obs["group"] == cohort.obs["group"].iloc[0]).sum()
    left = {name: mask.sum() for name, mask in without_leaks(cohort, split, hashes).items()}
    expected = {"as it is": n - 1, "no copies": n - 2, "no neighbours": n - 2 - 3}
    assert left == expected | {"no shared patients": n - own - 1}


def test_neighbours_are_found_without_reading_counts(tiny_cohort, monkeypatch):
    cohort = open_cohort(tiny_cohort)
    splits, _ = PROTOCOLS["strict"].splits(cohort), cohort.obs
    monkeypatch.setattr(type(cohort), "adata", lambda *_, **__: pytest.fail("reads all counts"))
    table = leaks_of_splits(cohort, splits)
    assert (table["neighbours"] == 0).all() and (table["patients_shared"] == 0).all()
