"""The law of the demo: from what a tile shows to counts, and the best possible prediction under it.

For spot i of section s of patient p and gene g:

    z_i     what the tile shows: sqrt(cells / 60) of six types; mean nuclear radius and mean
            chromatin level of tumour cells, each times min(1, tumour cells / 15); standardised
            over the cohort
    log f   = baseline_g + z_i . loading_g + effect_sg,        effect = patient + section
    counts  ~ Poisson(library_i gamma_ig f_ig / sum_g f_ig),   gamma ~ Gamma(shape 5, mean 1)

"Composition" genes follow one cell type. "Cue" genes follow nuclear size or chromatin, which `mini`
half ignores by design. `hidden` is the share of a cue gene's loading (as variance) that stays on
its cue: 1 leaves the law as it is; 0 moves all of it to a cell type, with the same sizes and signs,
so that an alignment finds nothing new to learn. Two such worlds have the same tiles and the same
random numbers; nothing else differs.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.stats import poisson

from .drawing import TYPES, describe_tiles, stream

VERSION = "law-2"  # raise it whenever a count changes
CUES = ("nuclear_size", "chromatin")
FACTORS = (*TYPES, *CUES)
GENES_PER_TYPE, GENES_PER_CUE = 60, 120
# loading of a type's or cue's genes, times U(.5, 1)
TYPE_STRENGTH = np.array([1.2, 1.2, 1.2, 1.0, 1.0, 0.45])
CUE_STRENGTH = np.array([1.2, 1.2])
NEGATIVE = 0.25  # share of the cue genes that fall with their cue
STRAY = 0.04  # sd of all other loadings
BASELINE = 1.1  # sd over genes
PATIENT_EFFECT, SECTION_EFFECT = 0.35, 0.12  # sd, per gene
LIBRARY = 3000  # median counts of a spot
PATIENT_DEPTH, SECTION_DEPTH, SPOT_DEPTH = 0.25, 0.17, 0.35  # sd of log library
DISPERSION = 5.0  # shape of the gamma


def measure(section):
    """What each tile shows, (n, 8) in the order of FACTORS, not yet standardised."""
    counts, nuclei = describe_tiles(section)
    sure = np.minimum(1, counts[:, :1] / 15)  # (n, 1): few tumour cells say little about nuclei
    return np.hstack([np.sqrt(counts / 60), np.nan_to_num(sure * (nuclei - [4.1, 1.5]))])


@dataclass(frozen=True)
class Law:
    """What is drawn once for all spots."""

    genes: np.ndarray  # (G,) str
    group: np.ndarray  # (G,) "composition" or "cue"
    baseline: np.ndarray  # (G,)
    loading: np.ndarray  # (8, G)


def draw_law(seed, hidden=1.0):
    """Genes, baselines and loadings. `hidden` moves loadings; it changes no random number."""
    rng = stream(seed, purpose=2)
    types = np.repeat(np.arange(len(TYPES)), GENES_PER_TYPE)
    cues = np.repeat(np.arange(len(CUES)), GENES_PER_CUE)
    count = len(types) + len(cues)
    loading = rng.normal(0, STRAY, (len(FACTORS), count))
    size = rng.uniform(0.5, 1, count)
    sign = np.where(rng.random(len(cues)) < NEGATIVE, -1, 1)
    # the type that a cue gene follows where nothing is hidden; never fat
    substitute = rng.integers(0, 5, len(cues))
    baseline = rng.normal(0, BASELINE, count)

    column = np.arange(count)
    loading[types, column[: len(types)]] += TYPE_STRENGTH[types] * size[: len(types)]
    strength = CUE_STRENGTH[cues] * sign * size[len(types) :]
    loading[len(TYPES) + cues, column[len(types) :]] += np.sqrt(hidden) * strength
    loading[substitute, column[len(types) :]] += np.sqrt(1 - hidden) * strength
    names = [f"COMP{i:04d}" for i in range(1, len(types) + 1)]
    names += [f"CUE{i:04d}" for i in range(1, len(cues) + 1)]
    group = ["composition"] * len(types) + ["cue"] * len(cues)
    return Law(np.array(names), np.array(group), baseline, loading)


def section_effect(seed, patient, section, count):
    """Effect of patient and section on the log expression of each gene, (G,)."""
    of_patient = stream(seed, patient, 0, 3).normal(0, PATIENT_EFFECT, count)
    return of_patient + stream(seed, patient, section, 3).normal(0, SECTION_EFFECT, count)


def frequencies(law, z, effect):
    """Share of each gene in a spot's RNA, (n, G); rows sum to 1.

    Args:
        z: (n, 8), standardised.
        effect: (G,) or (n, G).
    """
    log_f = law.baseline + z @ law.loading + effect  # (n, 8) x (8, G)
    f = np.exp(log_f - log_f.max(1, keepdims=True))
    return f / f.sum(1, keepdims=True)


def draw_counts(law, z, seed, patient, section):
    """Counts of one section, (n, G) int64.

    Poisson numbers come from uniform ones by the inverse distribution. Each entry uses exactly one,
    so worlds with another `hidden` share them, and a rounding difference between machines cannot
    spread.
    """
    rng = stream(seed, patient, section, 4)
    depth = stream(seed, patient, 0, 4).normal(0, PATIENT_DEPTH) + rng.normal(0, SECTION_DEPTH)
    library = LIBRARY * np.exp(depth + rng.normal(0, SPOT_DEPTH, (len(z), 1)))
    gamma = rng.gamma(DISPERSION, 1 / DISPERSION, (len(z), len(law.genes)))
    effect = section_effect(seed, patient, section, len(law.genes))  # (G,)
    mean = library * gamma * frequencies(law, z, effect)  # (n, G)
    return poisson.ppf(rng.random(mean.shape), mean).clip(0).astype(np.int64)


def expected_target(law, z, effect, redraws, seed):
    """Mean of log1p(CP10K) over redraws of counts and depth given the drawn tile.

    Args:
        z: (n, 8), standardised.
        effect: (n, G) or (G,), the known effect of patient and section. With None each redraw has a
            new one for all spots, so that differences between spots are free of its noise.

    Returns:
        two float32 (n, G): the mean over all redraws, and the mean over those with a non-zero
        count. If none has one, the second is the value of a single count.
    """
    shape = (len(z), len(law.genes))
    depth_sd = np.sqrt(PATIENT_DEPTH**2 + SECTION_DEPTH**2 + SPOT_DEPTH**2)
    new_sd = np.hypot(PATIENT_EFFECT, SECTION_EFFECT)

    def redraw(number):
        rng = stream(seed, number, 0, 5)
        effect_now = rng.normal(0, new_sd, shape[1]) if effect is None else effect
        depth = np.exp(rng.normal(0, depth_sd, (shape[0], 1)))
        mean = frequencies(law, z, effect_now) * LIBRARY * depth
        mean *= rng.standard_gamma(DISPERSION, shape, np.float32) / np.float32(DISPERSION)
        counts = rng.poisson(mean).astype(np.float32)
        return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1)), counts > 0

    total, hits = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    with ThreadPoolExecutor(2) as pool:  # numpy draws without the interpreter's lock
        for target, positive in pool.map(redraw, range(redraws)):
            total += target
            hits += positive
    single = np.float32(np.log1p(1e4 / LIBRARY))
    return total / redraws, np.where(hits > 0, total / np.maximum(hits, 1), single)
