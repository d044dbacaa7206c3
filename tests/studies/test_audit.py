"""The audit of a teacher: against scipy, known spectra, neighbours by hand, and a run with PCA."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist

from peka_core.common.errors import PekaError
from peka_core.studies.audit import audit, audit_bars, ranks, teacher_audit

SECTION = np.repeat(["A1", "A2", "B1", "B2", "B3"], [9, 13, 8, 10, 12])
PATIENT, N = SECTION.astype("<U1"), len(SECTION)
OBS, CODE = pd.DataFrame({"sample": SECTION, "group": PATIENT}), pd.factorize(SECTION)[0]
X = np.random.default_rng(0).normal(size=(N, 4)) + 0.3 * CODE[:, None] * [1, 2, 0, 3]
PCC = "PCC of genes"


def audited(x, labels=CODE, log=None, obs=OBS, k=10):
    return audit(x, labels, obs, x if log is None else log, k).set_index("quantity")


def test_shares_agree_with_scipys_anova_and_chance_with_spots_dealt_out_anew():
    def shares(x):
        groups = ([x[g == name] for name in np.unique(g)] for g in (SECTION, PATIENT))
        f = np.array([stats.f_oneway(*parts).statistic for parts in groups]) * [[4], [1]]  # (2, d)
        s, p = np.average(f / (f + [[N - 5], [N - 2]]), axis=1, weights=x.var(0))
        return [s, p, s - p, p / s]

    table, rng = audited(X, pd.factorize(PATIENT)[0]), np.random.default_rng(1)
    found = table[table.index.str.startswith("variance")]
    assert found["value"].to_numpy() == pytest.approx(shares(X))
    dealt = np.mean([shares(rng.permutation(X)) for _ in range(400)], axis=0)
    assert found["chance"].to_numpy() == pytest.approx(dealt, rel=0.1)
    assert table["value"]["AMI of label and patient"] == pytest.approx(1)
    assert 0.3 < table["value"]["AMI of label and section"] < 0.9


def test_ranks_follow_a_known_spectrum_and_what_a_section_shares_is_taken_out():
    within = X - pd.DataFrame(X).groupby(SECTION).transform("mean").to_numpy()
    x = np.linalg.qr(within)[0] * np.sqrt([4, 2, 1, 1])
    expected = 2**1.75, 64 / 22  # entropy of 1/2, 1/4, 1/8, 1/8 in bits; 8^2 / (16 + 4 + 1 + 1)
    assert ranks(x) == pytest.approx(expected)
    found = audited(x + 1e3 * CODE[:, None])["value"].filter(regex="rank|ratio").to_numpy()
    assert found == pytest.approx([1, 1, *expected], abs=1e-3)


def test_neighbours_are_those_of_a_table_of_distances_and_a_copy_is_not_the_spot_itself():
    same, log = SECTION[:, None] == SECTION, np.random.default_rng(1).normal(X)
    far, others = [cdist(v, v) + 1e6 * np.eye(N) for v in (X, log)], same.sum(1) - 1
    k = np.minimum(10, others)
    pairs = zip(*((d + 1e3 * ~same).argsort(1) for d in far), k)
    shares = [np.isin(a[:m], b[:m]).mean() for a, b, m in pairs]
    table, near = audited(X, log=sparse.csr_matrix(log)), far[0].argsort(1)[:, :10]
    found = table[table.index.str.startswith("neighbours")]
    own = [(groups[near] == groups[:, None]).mean() for groups in (SECTION, PATIENT)]
    assert found["value"].to_numpy() == pytest.approx([np.mean(shares), *own])
    chance = [((g[:, None] == g).sum() - N) / N / (N - 1) for g in (SECTION, PATIENT)]
    assert found["chance"].to_numpy() == pytest.approx([np.mean(k / others), *chance])
    twins = np.vstack([X, X]), np.repeat([0, 1], N)
    twin = audited(*twins, obs=pd.DataFrame({"sample": twins[1], "group": "P"}), k=1)["value"]
    assert twin.filter(like="neighbours").tolist() == [1, 0, 1]


def test_spots_that_the_teacher_could_not_use_are_left_out_and_counted():
    keep = np.arange(N) % 7 > 1
    expected = audited(X[keep], CODE[keep], obs=OBS[keep])
    expected.loc["spots left out", ["value", "n"]] = (~keep).sum(), N
    holes = np.where(keep[:, None] | np.array([1, 1, 1, 0], bool), X, np.nan)
    for x, labels in ((holes, CODE), (X, np.where(keep, CODE, -1))):
        pd.testing.assert_frame_equal(audited(x, labels, log=X), expected)
    with pytest.raises(PekaError, match="log_counts"):
        audited(X, log=X[1:])


def test_pca_is_its_own_reference_in_a_run_and_the_figure_shows_the_shares(work):
    table = teacher_audit(work, "patients/0").set_index("quantity")
    known, value = table.dropna(subset="counts"), table["value"]
    assert len(known) == len(table) - 3  # components by PcaTeacher, and by the audit's own PCA
    assert known["value"].to_numpy() == pytest.approx(known["counts"].to_numpy(), abs=1e-3)
    assert value[f"{PCC}, minus depth"] == pytest.approx(value[PCC] - value[f"{PCC}, depth alone"])
    assert value[PCC] > 0.1 + value[f"{PCC}, depth alone"]
    assert set(table["split"]) == {"patients/0"} and table["code"].ne("").all()
    ax = audit_bars(table.reset_index())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert [bar.get_width() for bar in ax.patches] == value[names].tolist() and len(names) == 7
    assert ax.lines[1].get_xdata().tolist() == table["chance"][names].tolist()
