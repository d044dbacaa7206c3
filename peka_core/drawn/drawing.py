"""Plans one H&E section with every cell in it; no image is read and nothing is learned.

A section is *planned* here (fields -> architecture -> cells) and *painted* in painting.py (cells ->
density of dyes -> RGB). Counts follow the plan, an encoder sees the painting. Lengths are in µm;
one painted pixel is 1 µm.

Random numbers come from streams named (seed, patient, section, purpose); patients and sections are
counted from 1. So a section does not depend on how many others are drawn, in which order, or in
which process. Section 0 stands for what all sections of a patient share. numpy pads short keys with
zeros, so keys always have four numbers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.special import ndtr, softmax

VERSION = "drawing-1"  # raise it whenever a cell here or a pixel in painting.py changes
TYPES = ("tumour", "gland", "fibroblast", "lymphocyte", "macrophage", "fat")
TUMOUR, GLAND, FIBROBLAST, LYMPHOCYTE, MACROPHAGE, FAT = range(6)
TILE = 112  # µm: field of view of one tile, and its side in drawn pixels
PITCH = 100.0  # µm between neighbouring spots
GRID = 4.0  # µm between the points on which smooth fields are computed
MARGIN = 62  # µm of tissue around the outermost spot centres

PATIENT_MIX = np.array([0.7, 0.1, 0.7, 0.0, -0.4, -0.2])  # mean log-abundance of the six types
CELL_SPACING = (11.5, 9.0, 12.5, 6.5, 10.5, 30.0)  # µm between neighbouring cells of a type
TUMOUR_RADII = np.array([2.4, 3.0, 3.7, 4.5, 5.4, 6.4])  # µm, six nuclear sizes
TURNS = 12  # orientations of nuclei, over half a turn


def stream(seed, patient=0, section=0, purpose=0):
    """The generator of (seed, patient, section, purpose), independent of all others."""
    return np.random.default_rng([seed, patient, section, purpose])


@dataclass(frozen=True)
class Patient:
    """What all sections of a patient share: mixture of types, nuclear habit, dyes."""

    mix: np.ndarray  # (6,) log-abundance
    habit: np.ndarray  # (3,) shift of nuclear size, chromatin and mitosis
    dyes: np.ndarray  # (2, 3) optical density of haematoxylin and eosin in R, G, B
    strength: np.ndarray  # (2,) how strongly each dye took


@dataclass(frozen=True)
class Cells:
    """All cells of a section; arrays of one length. Positions in µm."""

    xy: np.ndarray  # (c, 2)
    kind: np.ndarray  # (c,) index into TYPES
    # size, chromatin and mitosis mean something for tumour cells only
    size: np.ndarray  # (c,) index into TUMOUR_RADII
    chromatin: np.ndarray  # (c,) 0 pale ... 3 dark
    mitosis: np.ndarray  # (c,) bool
    turn: np.ndarray  # (c,) orientation, 0 ... TURNS - 1
    variant: np.ndarray  # (c,) which of two shapes


@dataclass(frozen=True)
class PlannedSection:
    """The spots, the smooth fields and the cells of a section."""

    key: tuple[int, int, int]  # seed, patient, section
    patient: Patient
    centres: np.ndarray  # (n, 2) spot centres (x, y), µm = drawn pixels
    barcodes: list[str]
    shape: tuple[int, int]  # height, width in µm
    fields: dict[str, np.ndarray]
    cells: Cells


def draw_patient(seed, patient):
    """Everything about a patient that does not depend on the section."""
    rng = stream(seed, patient)
    dyes = np.array([[0.65, 0.70, 0.29], [0.08, 0.95, 0.16]])
    dyes = dyes + rng.normal(0, [[0.045], [0.04]], (2, 3))
    return Patient(
        mix=rng.normal(PATIENT_MIX, 0.45),
        habit=rng.normal(0, 0.25, 3),
        dyes=dyes.clip(0.02),
        strength=np.exp(rng.normal(0, [0.17, 0.22])),
    )


def spot_grid(spots):
    """`spots` hexagonal spots closest to the middle, row by row.

    Returns:
        (n, 2) centres in µm from the section's corner, and barcodes "rowxcolumn" as in legacy ST.
    """
    side = int(np.ceil(np.sqrt(spots))) + 2
    row, column = np.mgrid[:side, :side].reshape(2, -1)
    xy = np.stack([PITCH * (column + row % 2 / 2), PITCH * np.sqrt(0.75) * row], 1)
    order = np.argsort(np.hypot(*(xy - xy.mean(0)).T).round(6), kind="stable")
    keep = np.sort(order[:spots])
    centres = np.round(xy[keep] - xy[keep].min(0)) + MARGIN
    return centres, [f"{r}x{c}" for r, c in zip(row[keep], column[keep], strict=True)]


def smooth_field(rng, shape, length):
    """Gaussian field of unit variance on a grid of `shape`, smooth over `length` µm (sd).

    Broad fields are made on a coarser grid and enlarged, which costs less and shows no difference.
    """
    sigma = length / GRID
    step = max(1, int(sigma // 3))
    small = [int(np.ceil(side / step)) + 1 for side in shape]
    sigma /= step
    noise = gaussian_filter(rng.standard_normal(small), sigma, mode="wrap")
    field = noise * 2 * np.sqrt(np.pi) * sigma
    if step > 1:
        field = zoom(field, step, order=3, mode="nearest")
    return field[: shape[0], : shape[1]]


def draw_fields(rng, patient, shape):
    """Smooth fields on the GRID: types, architecture, nuclear habit, direction of fibres."""
    grid = [int(np.ceil(side / GRID)) + 1 for side in shape]

    def field(length):
        return smooth_field(rng, grid, length)

    logits = np.stack([1.25 * (1.25 * field(160) + mean) for mean in patient.mix])
    fraction = softmax(logits, axis=0)  # (6, h, w)
    epithelium = fraction[TUMOUR] + fraction[GLAND]
    gland_share = fraction[GLAND] / epithelium
    nest = ndtr(0.9 * field(18) + 0.45 * field(9))  # uniform; epithelium where it is low
    glandular = gland_share - ndtr(field(48))  # a nest forms glands where this is positive
    size, chromatin, mitosis = (0.95 * field(88) + shift for shift in patient.habit)
    return {
        "fraction": fraction,
        "inside": 0.85 * epithelium - nest,
        "glandular": glandular,
        "lumen": 0.24 * epithelium * np.clip(1.6 * gland_share + 0.1, 0, 1) - nest,
        "adipose": fraction[FAT] / (1 - epithelium + 0.05) * 1.4 - ndtr(field(40)),
        "size": size,
        "chromatin": chromatin,
        "mitosis": mitosis,
        "warp": 42 * field(95),  # µm by which fibres bend
        "tilt": np.full(grid, rng.uniform(0, np.pi)),
    }


def at(field, xy):
    """Field at points (c, 2) in µm, bilinear."""
    return map_coordinates(field, xy.T[::-1] / GRID, order=1, mode="nearest")


def jittered_lattice(rng, shape, spacing):
    """(c, 2) points about `spacing` µm apart that cover `shape`, in random order."""
    y, x = np.mgrid[0 : shape[0] : spacing * 0.93, 0 : shape[1] : spacing]
    x = x + spacing / 2 * (np.arange(len(x))[:, None] % 2)
    xy = np.stack([x, y], -1).reshape(-1, 2)  # (rows, columns, 2) -> (c, 2)
    xy = xy + rng.uniform(-0.3, 0.3, xy.shape) * spacing
    inside = (xy >= 0).all(1) & (xy[:, 0] < shape[1]) & (xy[:, 1] < shape[0])
    return rng.permutation(xy[inside])


def presence(kind, fields, xy):
    """Probability that a lattice point carries a cell of a type, from the architecture there."""
    nest = at(fields["inside"], xy) > 0.01
    glands = at(fields["glandular"], xy) > 0
    if kind == TUMOUR:
        return 0.95 * (nest & ~glands)
    if kind == GLAND:
        return 0.97 * (nest & glands & (at(fields["lumen"], xy) < -0.02))
    fat = at(fields["adipose"], xy) > 0
    if kind == FAT:
        return 0.9 * (fat & ~nest)
    stroma = fields["fraction"][[FIBROBLAST, LYMPHOCYTE, MACROPHAGE]]
    share = at(stroma[kind - FIBROBLAST] / stroma.sum(0), xy)
    return share * (~nest & ~fat & (at(fields["inside"], xy) < -0.02))


def nuclear_levels(rng, fields, xy):
    """Size class 0..5, chromatin class 0..3 and mitosis of tumour cells, from smooth fields."""
    size = np.round(2.5 + 1.35 * at(fields["size"], xy) + 0.5 * rng.standard_normal(len(xy)))
    dark = np.round(1.5 + 0.95 * at(fields["chromatin"], xy) + 0.35 * rng.standard_normal(len(xy)))
    chance = np.minimum(0.4, 0.05 * np.exp(1.1 * at(fields["mitosis"], xy)))
    mitosis = rng.random(len(xy)) < 0.3 * chance
    return size.clip(0, 5).astype(int), dark.clip(0, 3).astype(int), mitosis


def fibre_angle(fields, xy):
    """Direction of the stroma fibres at points, radians in [0, pi)."""
    tilt = fields["tilt"][0, 0]
    dy, dx = (at(g, xy) for g in np.gradient(fields["warp"], GRID))
    # along the level sets of the coordinate that `painting.fibre_texture` bends
    return np.arctan2(np.sin(tilt) - dx, np.cos(tilt) + dy) % np.pi


def draw_cells(rng, fields, shape):
    """Places the cells of all types and chooses size, darkness and orientation of each nucleus."""
    parts = []
    for kind, spacing in enumerate(CELL_SPACING):
        xy = jittered_lattice(rng, shape, spacing)
        xy = xy[rng.random(len(xy)) < presence(kind, fields, xy)]
        size, chromatin, mitosis = nuclear_levels(rng, fields, xy)
        turn, variant = rng.integers(0, TURNS, len(xy)), rng.integers(0, 2, len(xy))
        if kind == FIBROBLAST:
            along = fibre_angle(fields, xy) / np.pi * TURNS
            turn = (along + rng.normal(0, 0.6, len(xy))).astype(int) % TURNS
        parts.append((xy, np.full(len(xy), kind), size, chromatin, mitosis, turn, variant))
    return Cells(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def plan_section(seed, patient, section, spots=60):
    """Plans one section: about 0.1 s for 60 spots, no pixel drawn.

    Args:
        seed: of the whole cohort. patient, section: counted from 1.
        spots: number of spots; the tissue is just large enough for them.
    """
    rng = stream(seed, patient, section)
    who = draw_patient(seed, patient)
    centres, barcodes = spot_grid(spots)
    width, height = (int(side) for side in centres.max(0) + MARGIN)
    fields = draw_fields(rng, who, (height, width))
    cells = draw_cells(rng, fields, (height, width))
    key, shape = (seed, patient, section), (height, width)
    return PlannedSection(key, who, centres, barcodes, shape, fields, cells)


def inside_window(section, centre, side=TILE):
    """Mask (c,) of the cells whose middle lies in the square window around a point, all in µm."""
    return (np.abs(section.cells.xy - centre) <= side / 2).all(1)


def describe_tiles(section):
    """What each tile shows.

    Returns:
        counts: (n, 6) cells of each of TYPES.
        nuclei: (n, 2) mean nuclear radius (µm) and mean chromatin level (0..3) of the tumour cells
            that do not divide; NaN where there is none.
    """
    cells, n = section.cells, len(section.centres)
    counts, nuclei = np.zeros((n, len(TYPES))), np.full((n, 2), np.nan)
    for i, centre in enumerate(section.centres):
        here = inside_window(section, centre)
        counts[i] = np.bincount(cells.kind[here], minlength=len(TYPES))
        tumour = here & (cells.kind == TUMOUR) & ~cells.mitosis
        if tumour.any():
            nuclei[i] = TUMOUR_RADII[cells.size[tumour]].mean(), cells.chromatin[tumour].mean()
    return counts, nuclei
