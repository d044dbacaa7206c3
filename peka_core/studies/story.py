"""The gene that all chapters follow, from its first map to its prediction on a new slide."""

import numpy as np

from ..genes import log_cp10k
from ..protocols import PROTOCOLS
from ..runner.run import Run


def story_gene(work: Run) -> str:
    """The profile's `chapters: gene:`, or the target gene that varies most within sections.

    A gene of the profile that is no target gene of `strict` in this cohort is not taken, because
    the later chapters score it.
    """
    lists = [set(task.genes) for task in work.tasks(PROTOCOLS["strict"])]
    shared = sorted(set.intersection(*lists)) or sorted(set.union(*lists))
    if work.profile.chapters.gene in set.union(*lists):
        return work.profile.chapters.gene
    counts = work.cohort().adata()
    log = log_cp10k(counts[:, shared])  # (n, g)
    sections = counts.obs["sample"].to_numpy()
    variance = [log[sections == section].var(axis=0) for section in np.unique(sections)]
    return shared[int(np.mean(variance, axis=0).argmax())]
