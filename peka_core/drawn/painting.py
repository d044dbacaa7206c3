"""Paints a section that drawing.py planned: nuclei, fibres, fat -> density of dyes -> RGB -> tiles.

One painted pixel is 1 µm; `tiles` doubles it to the 0.5 µm/px that encoders take. Shapes and
textures are rendered once in a process and are the same in every cohort.
"""

from functools import lru_cache

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from .drawing import (
    GRID,
    MACROPHAGE,
    TILE,
    TUMOUR,
    TUMOUR_RADII,
    TURNS,
    TYPES,
    smooth_field,
    stream,
)

STAMP = 12  # half side of a nucleus stamp, µm
CHROMATIN = (  # base density, rim, texture, nucleoli of tumour nuclei, pale to dark
    (0.42, 0.30, 0.20, 1.2),
    (0.70, 0.20, 0.25, 0.6),
    (1.02, 0.10, 0.28, 0.2),
    (1.40, 0.05, 0.25, 0.05),
)


def nucleus_stamp(rng, radius, elongation, angle, base, rim, texture, nucleoli, ragged=0.0):
    """One nucleus as haematoxylin density, (25, 25) float32 at 1 µm/px.

    An ellipse of mean radius `radius` µm with a darker rim, chromatin texture and dots (nucleoli).
    """
    fine = 3  # samples per µm and axis
    side = (2 * STAMP + 1) * fine
    axis = (np.arange(side) - (side - 1) / 2) / fine  # µm from the middle
    x, y = np.meshgrid(axis, axis)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    stretch = np.sqrt(elongation)
    grain = gaussian_filter(rng.standard_normal(x.shape), fine * 0.7)
    grain /= grain.std()
    distance = np.hypot(along / (radius * stretch), across / (radius / stretch))
    distance = distance * (1 + ragged * grain)
    body = np.clip((1 - distance) * radius * 1.5 + 0.5, 0, 1)
    density = base + rim * np.exp(-(((distance - 0.92) / 0.14) ** 2)) + texture * base * 0.6 * grain
    for _ in range(2):
        cx, cy = rng.uniform(-0.45, 0.45, 2) * radius
        density += nucleoli * 0.55 * np.exp(-(((along - cx) ** 2 + (across - cy) ** 2) / 0.9**2))
    stamp = body * density.clip(0.05)
    return stamp.reshape(2 * STAMP + 1, fine, 2 * STAMP + 1, fine).mean((1, 3)).astype(np.float32)


# kind -> list of (radius µm, elongation, base, rim, texture, nucleoli, raggedness);
# each is rendered in TURNS orientations
STAMP_KINDS = {
    "tumour": [
        (radius, elongation, *levels, 0.03)
        for radius in TUMOUR_RADII
        for levels in CHROMATIN
        for elongation in (1.08, 1.4)
    ],
    "mitosis": [(2.8, 2.6, 2.2, 0, 0.2, 0, 0.12), (2.8, 1.9, 2.2, 0, 0.2, 0, 0.15)],
    "gland": [(3.3, 1.45, 0.85, 0.15, 0.2, 0.2, 0.03), (3.1, 1.6, 0.95, 0.15, 0.2, 0.1, 0.03)],
    "fibroblast": [(2.3, 2.8, 1.0, 0, 0.15, 0, 0.05), (2.3, 4.5, 1.0, 0, 0.15, 0, 0.05)],
    "lymphocyte": [(2.5, 1.05, 1.45, 0.1, 0.2, 0, 0.04), (2.4, 1.15, 1.55, 0.1, 0.2, 0, 0.04)],
    "macrophage": [(2.8, 1.3, 0.65, 0.15, 0.2, 0.2, 0.05), (2.6, 1.6, 0.7, 0.15, 0.2, 0.2, 0.08)],
    "fat": [(1.9, 3.0, 1.1, 0, 0.1, 0, 0.05), (1.8, 4.0, 1.1, 0, 0.1, 0, 0.05)],
}


def first_stamp(kind):
    """Index in stamps() of the first stamp of a kind."""
    kinds = list(STAMP_KINDS)
    return TURNS * sum(len(STAMP_KINDS[name]) for name in kinds[: kinds.index(kind)])


@lru_cache(maxsize=1)
def stamps():
    """All nuclei, (k, 25, 25) float32; the same in every cohort."""
    rng = np.random.default_rng(20240601)
    return np.stack([
        nucleus_stamp(rng, radius, elongation, np.pi * turn / TURNS, *rest)
        for shapes in STAMP_KINDS.values()
        for radius, elongation, *rest in shapes
        for turn in range(TURNS)
    ])  # fmt: skip


def stamp_of(cells):
    """(c,) index into stamps() for each cell."""
    shape = cells.variant.copy()  # number of the shape within its kind
    tumour = cells.kind == TUMOUR
    shape[tumour] += 2 * (4 * cells.size + cells.chromatin)[tumour]
    index = np.array([first_stamp(kind) for kind in TYPES])[cells.kind] + shape * TURNS + cells.turn
    dividing = first_stamp("mitosis") + cells.variant * TURNS + cells.turn
    return np.where(tumour & cells.mitosis, dividing, index)


@lru_cache(maxsize=1)
def foam_stamp():
    """Pale cytoplasm of a macrophage, (25, 25) float32 in 0..1."""
    rng = np.random.default_rng(20240602)
    return np.clip(1.25 * nucleus_stamp(rng, 6.3, 1.1, 0.4, 0.75, 0, 0.5, 0, 0.08), 0, 1)


@lru_cache(maxsize=1)
def textures(side=512):
    """Two periodic textures (side, side) float32: walls of fat cells in 0..1, and fibres.

    The fibres have unit variance.
    """
    rng = np.random.default_rng(20240603)
    spacing = side / 14  # µm
    lattice = np.stack(np.mgrid[:14, :14], -1).reshape(-1, 2)  # (14, 14, 2) -> (196, 2)
    seeds = lattice * spacing + rng.uniform(0, 0.75, (196, 2)) * spacing
    pixels = np.stack(np.mgrid[:side, :side], -1).astype(float)
    # (side, side, 2) distance to the two nearest seeds
    near, _ = cKDTree(seeds, boxsize=side).query(pixels, k=2)
    walls = np.exp(-(((near[..., 1] - near[..., 0]) / 2.2) ** 2))
    fibres = gaussian_filter(rng.standard_normal((side, side)), (0.9, 14), mode="wrap")
    return walls.astype(np.float32), (fibres / fibres.std()).astype(np.float32)


def enlarge(field, shape):
    """Field on the GRID -> pixels, (h, w) float32."""
    scale = int(GRID)
    big = cv2.warpAffine(
        field.astype(np.float32), np.array([[scale, 0, 0], [0, scale, 0]], np.float64),
        (shape[1], shape[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return cv2.GaussianBlur(big, (0, 0), 1.2)


def edge(field, width):
    """Soft step: 0 where field is below -width, 1 above width."""
    return np.clip(field / (2 * width) + 0.5, 0, 1)


def fibre_texture(section, rng):
    """Wavy bundles of collagen: the fibre texture along the level sets of a bent coordinate."""
    tilt = section.fields["tilt"][0, 0]
    y, x = np.mgrid[: section.shape[0], : section.shape[1]].astype(np.float32)
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    across = y * cos - x * sin + enlarge(section.fields["warp"], section.shape)
    along = x * cos + y * sin
    shift = rng.uniform(0, 512, 2).astype(np.float32)
    columns, rows = (along + shift[0]) % 511, (across + shift[1]) % 511
    return cv2.remap(textures()[1], columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def fat_walls(section, rng):
    """Walls of fat cells over the whole canvas, from the periodic texture."""
    height, width = section.shape
    dy, dx = rng.integers(0, 512, 2)
    rows, columns = (np.arange(height) + dy) % 512, (np.arange(width) + dx) % 512
    return textures()[0][np.ix_(rows, columns)]


def paste(canvas, xy, images):
    """Pastes (c, 25, 25) images at points by maximum, in place.

    The canvas has a border of STAMP pixels.
    """
    size = 2 * STAMP + 1
    for (x, y), image in zip(np.round(xy).astype(int).tolist(), images, strict=True):
        window = canvas[y : y + size, x : x + size]
        np.maximum(window, image[: window.shape[0], : window.shape[1]], out=window)


def paste_cells(section):
    """Haematoxylin of all nuclei, and the pale foam around macrophages: two (h, w) float32."""
    height, width = section.shape
    nuclei = np.zeros((height + 2 * STAMP, width + 2 * STAMP), np.float32)
    foam = np.zeros_like(nuclei)
    cells = section.cells
    paste(nuclei, cells.xy, stamps()[stamp_of(cells)])
    macrophages = cells.xy[cells.kind == MACROPHAGE]
    paste(foam, macrophages, [foam_stamp()] * len(macrophages))
    inner = np.s_[STAMP:-STAMP, STAMP:-STAMP]
    return nuclei[inner], foam[inner]


def tissue_density(section, rng):
    """Optical density of both dyes, haematoxylin and eosin, (h, w) each."""
    masks = {
        name: enlarge(section.fields[name], section.shape)
        for name in ("inside", "glandular", "lumen", "adipose")
    }
    nest = edge(masks["inside"], 0.03)
    glands = edge(masks["glandular"], 0.03)
    lumen = edge(masks["lumen"], 0.012) * glands * nest
    fat = edge(masks["adipose"], 0.03) * (1 - nest)
    nuclei, foam = paste_cells(section)
    fibres, walls = fibre_texture(section, rng), fat_walls(section, rng)

    grain = cv2.GaussianBlur(rng.standard_normal(section.shape, np.float32), (0, 0), 1.3) * 3
    stroma_eosin = 0.60 + 0.085 * fibres + 0.03 * grain
    nest_eosin = 0.50 + 0.10 * glands + 0.06 * grain
    eosin = stroma_eosin + nest * (nest_eosin - stroma_eosin)
    eosin *= 1 - 0.55 * foam
    eosin *= 1 - 0.45 * np.minimum(nuclei, 1)
    haematoxylin = 0.05 + nest * (0.13 - 0.04 * glands) + 0.015 * grain
    empty = np.maximum(lumen, fat * (1 - 0.75 * walls))
    eosin = eosin * (1 - empty) + 0.03 * empty
    haematoxylin = haematoxylin * (1 - empty) + nuclei * (1 - lumen)
    return haematoxylin, eosin


def paint(section):
    """Paints a planned section.

    Returns:
        (h, w, 3) uint8 RGB at 1 µm/px: Beer-Lambert, 243 exp(-(H h + E e)), then the blur of the
        optics and the noise of the sensor.
    """
    rng = stream(*section.key, 1)
    haematoxylin, eosin = tissue_density(section, rng)
    grid = section.fields["warp"].shape
    thickness = 0.13 * smooth_field(rng, grid, 160)
    strength = section.patient.strength * np.exp(rng.normal(0, [0.06, 0.08]))
    haematoxylin *= np.exp(enlarge(thickness, section.shape)) * np.float32(strength[0])
    uneven = thickness + 0.16 * smooth_field(rng, grid, 120)
    eosin *= np.exp(enlarge(uneven, section.shape)) * np.float32(strength[1])
    image = np.empty((*section.shape, 3), np.float32)
    for channel in range(3):
        h, e = section.patient.dyes[:, channel].astype(np.float32)
        np.exp(-(h * haematoxylin + e * eosin), out=image[..., channel])
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.55)) * 243
    image += 2 * rng.standard_normal(image.shape, np.float32)
    return np.rint(image).clip(0, 255).astype(np.uint8)


def cut(image, centres, px_per_um=1):
    """The window around each spot centre (n, 2) in µm: (n, 112, 112, 3) uint8 or a multiple."""
    side, corners = px_per_um * TILE, px_per_um * (centres.astype(int) - TILE // 2)
    return np.stack([image[y : y + side, x : x + side] for x, y in corners])


def double(image):
    """(h, w, 3) -> (2h, 2w, 3) uint8, smooth.

    The means of 2 x 2 pixels are the drawn pixels within one grey level.
    """
    height, width = image.shape[:2]
    smooth = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    means = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_AREA)
    missing = image.astype(np.int16) - means
    return (smooth + missing.repeat(2, 0).repeat(2, 1)).clip(0, 255).astype(np.uint8)


def tiles(section):
    """Tiles of a planned section as every encoder takes them, uint8 (n, 224, 224, 3), 0.5 µm/px."""
    return cut(double(paint(section)), section.centres, px_per_um=2)
