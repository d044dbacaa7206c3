"""Where a slide is predicted: on a lattice over tissue, or at centres that the user gives."""

from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ..common.errors import PekaError
from ..common.file_kinds import HDF5, what_is
from ..common.files import sha256
from ..tiles import corner_of, tile_side
from .image import Slide
from .lattice import LEAST, make_lattice
from .orientation import MARGIN, measure
from .regions import read_regions
from .tissue import find_tissue

EXPECTED = "a CSV with columns x and y (level-0 px), or an h5ad with obsm['spatial']"


@dataclass(frozen=True, eq=False)
class Places:
    """Centres of tiles (n, 2) in level-0 px, with a table of n rows about them."""

    centres: np.ndarray
    obs: pd.DataFrame  # index: names; x, y: column and row on the lattice; tissue_share
    files: dict[str, str]  # sha256 of the file of `spots`, `mask` or `region`
    warning: str = ""


def on_lattice(slide: Slide, mask: str | Path | None, region: str | Path | None) -> Places:
    """Tiles side by side, where at least half of a tile is tissue inside the region.

    Args:
        mask: GeoJSON of the tissue; by default it is computed.
        region: GeoJSON of a region; by default the whole slide.
    """
    tissue = read_regions(mask, slide) if mask else find_tissue(slide)
    wanted = tissue & read_regions(region, slide) if region else tissue
    lattice = make_lattice(slide, wanted)
    names = [f"{column}x{row}" for column, row in lattice.index.tolist()]
    obs = pd.DataFrame(lattice.index, names, ["x", "y"])
    obs["tissue_share"] = tissue.share_of(lattice.corners, lattice.side)
    named = {"mask": mask, "region": region}
    return Places(lattice.centres, obs, {name: sha256(f) for name, f in named.items() if f})


def at_spots(slide: Slide, centres) -> Places:
    """Centres (n, 2) of a user, or of a file as `read_spots` reads it.

    Spots off tissue are kept; if they are most of all spots, `warning` says so.
    """
    if isinstance(centres, str | Path):
        places, what = read_spots(centres), str(centres)
    else:
        places, what = spots(centres), "centres"
    _check_inside(places, slide, what)
    try:
        tissue = find_tissue(slide)
    except PekaError as error:
        return replace(places, warning=str(error))
    corners = [corner_of(centre, slide.um_per_px) for centre in places.centres]
    share = tissue.share_of(np.array(corners), tile_side(slide.um_per_px))
    on_tissue, warning = (share >= LEAST).mean(), ""
    if on_tissue < 0.5:
        warning = (
            f"Only {100 * on_tissue:.0f} % of the {len(share):,} spots of {what} lie on tissue. "
            "Check that they belong to this slide, and that x and y are px of full resolution."
        )
    found = measure(places.centres, tissue, (slide.width, slide.height))
    if found.lead < -MARGIN:
        given, best = (found.scores[name] for name in ("as_given", found.best))
        warning += f"{' ' * bool(warning)}" + (
            f"Perhaps the spots of {what} are turned, mirrored or have x and y swapped: "
            f"{100 * given:.0f} % of their centres lie on tissue as given, and {100 * best:.0f} % "
            f"with {found.best}."
        )
    return replace(places, obs=places.obs.assign(tissue_share=share), warning=warning)


def read_spots(path: str | Path) -> Places:
    """Read centres from a CSV or h5ad, in the order of the file.

    Raises:
        PekaError: the file is missing or of another kind, has no spot, a centre that is no finite
            number, or a barcode twice.
    """
    path = Path(path)
    if not path.is_file():
        raise PekaError(f"{path} does not exist; expected {EXPECTED}. Correct the path.")
    centres, names = _from_h5ad(path) if what_is(path) == HDF5 else _from_csv(path)
    return replace(spots(centres, names, str(path)), files={"spots": sha256(path)})


def spots(centres, names=None, what: str = "centres") -> Places:
    """Check centres (n, 2) of level-0 px that come from a user.

    Args:
        names: n names of the spots, all different; by default `spot_1`, `spot_2`, …
        what: file or parameter, for the message.
    """
    try:
        centres = np.asarray(centres, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PekaError(f"{what}: centres must be numbers of px ({error})") from error
    if centres.ndim != 2 or centres.shape[1] != 2 or not len(centres):
        found = "no spot" if not len(centres) else f"shape {centres.shape}"
        raise PekaError(f"{what}: found {found}; expected centres (n, 2), x and y, of n >= 1 spots")
    bad = np.flatnonzero(~np.isfinite(centres).all(1))
    if len(bad):
        raise PekaError(
            f"{what}: {len(bad)} of {len(centres)} centres are no finite numbers (first: spot "
            f"{bad[0] + 1}). Give x and y of every spot in level-0 px, or remove these spots."
        )
    index = pd.Index(names if names is not None else [f"spot_{i + 1}" for i in range(len(centres))])
    index = index.astype(str)
    if index.has_duplicates:
        twice = index[index.duplicated()][0]
        raise PekaError(
            f"{what}: the barcode {twice} occurs more than once; give each spot its own"
        )
    return Places(centres, pd.DataFrame({"tissue_share": np.nan}, index=index.rename(None)), {})


def _from_csv(path: Path) -> tuple[np.ndarray, pd.Index | None]:
    try:
        table = pd.read_csv(path, dtype={"barcode": str}, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        raise PekaError(f"{path} is empty; expected {EXPECTED}") from None
    except (ValueError, UnicodeDecodeError) as error:
        kind = what_is(path)
        found = f"it is {kind}" if kind else str(error).strip()
        raise PekaError(
            f"{path} cannot be read as a table: {found}; expected {EXPECTED}"
        ) from error
    if missing := [name for name in ("x", "y") if name not in table]:
        advice = "Rename the columns of the spot centres to x and y"
        if len(table.columns) == 1:
            advice = "Save it with commas between the columns, and points in the numbers"
        raise PekaError(
            f"{path} has no column {' and '.join(missing)}, but {', '.join(map(str, table))}; "
            f"expected {EXPECTED}. {advice}."
        )
    return table[["x", "y"]].to_numpy(), table.get("barcode")


def _from_h5ad(path: Path) -> tuple[np.ndarray, pd.Index]:
    try:
        table = ad.read_h5ad(path, backed="r")
        names, found = table.obs_names, dict(table.obsm)
        table.file.close()
    except (OSError, KeyError, ValueError, TypeError, ad.io.AnnDataReadError) as error:
        raise PekaError(f"{path} cannot be read as an AnnData file ({error})") from error
    if "spatial" not in found:
        raise PekaError(f"{path} has no obsm['spatial'], but {sorted(found)}; expected {EXPECTED}")
    return np.asarray(found["spatial"])[:, :2], names


def _check_inside(places: Places, slide: Slide, what: str) -> None:
    """Refuse centres outside the slide; say so if they lie inside with x and y swapped."""
    size = np.array([slide.width, slide.height])
    outside = lambda xy: np.flatnonzero(((xy < 0) | (xy >= size)).any(1))
    bad = outside(places.centres)
    if not len(bad):
        return
    x, y = places.centres[bad[0]].tolist()
    swapped = not len(outside(places.centres[:, ::-1]))
    hint = "With x and y swapped all lie inside: swap the columns." if swapped else (
        "Give centres in px of this file at full resolution."
    )  # fmt: skip
    raise PekaError(
        f"{what}: {len(bad)} of {len(places.centres)} centres lie outside {slide.path.name}, which "
        f"has {slide.width} x {slide.height} px (first: x {x:g}, y {y:g}). {hint}"
    )
