"""`peka import`: samples of your own, from Space Ranger, tables or HEST's layout, into a cohort."""

import argparse
from collections.abc import Callable

from ..common.typed_values import absolute


def add_import(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to `peka`; `command(name, function, text)` makes its parser."""
    parser = command("import", _import, "your own samples into a cohort: visium, table or hest")
    kinds = parser.add_subparsers(required=True, metavar="KIND", dest="kind")
    visium = kinds.add_parser("visium", help="a folder of Space Ranger, versions 1 to 4, HD too")
    text = "outs/ or the folder above it; as in GEO, files with a prefix: geo/GSM1_"
    visium.add_argument("folder", type=absolute, help=text)
    _add_sample_options(visium)
    squares = "side of the squares into which bins of Visium HD are pooled, um (default: 56)"
    visium.add_argument("--bin-um", type=float, metavar="UM", help=squares)
    table = kinds.add_parser("table", help="counts and coordinates: h5ad, zarr, TSV or CSV")
    table.add_argument("counts", type=absolute, help="h5ad, zarr (a SpatialData table), TSV or CSV")
    places = 'barcodes and x, y in px; not needed with obsm["spatial"]'
    table.add_argument("--coordinates", type=absolute, metavar="FILE", help=places)
    _add_sample_options(table)
    hest = kinds.add_parser("hest", help="a directory in HEST's layout, with its tiles")
    hest.add_argument("folder", type=absolute, help="has adata/ or st/, and patches/")
    hest.add_argument("--patient", default="", help="of all sections, if samples.csv has none")
    _add_cohort_options(hest)


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    image = "microscope image at full resolution, as `spaceranger count --image` was given"
    parser.add_argument("--image", required=True, type=absolute, help=image)
    parser.add_argument("--sample", required=True, help="a new name for this section")
    patient = "whose tissue it is: the same name for all sections of one person"
    parser.add_argument("--patient", required=True, help=patient)
    size = "micrometres per pixel of the image; may be left out, and is compared with the files"
    parser.add_argument("--um-per-px", type=float, metavar="UM", help=size)
    turn = (
        "turn the spots on the image, after a look at the figure of a refused import: as_given, "
        "rot90, rot180, rot270, flip_x, flip_y, transpose or transverse"
    )
    parser.add_argument("--orient", default="", metavar="NAME", help=turn)
    for name in ("organ", "disease", "license"):
        parser.add_argument(
            f"--{name}", default="", help="kept with the sample, and shown in the README of a model"
        )
    _add_cohort_options(parser)


def _add_cohort_options(parser: argparse.ArgumentParser) -> None:
    cohort = "the cohort; it is made if it does not exist"
    parser.add_argument("--cohort", required=True, type=absolute, metavar="DIR", help=cohort)
    again = "import a sample again that the cohort has already"
    parser.add_argument("--replace", action="store_true", help=again)


def _import(arguments: argparse.Namespace) -> None:
    """Import, print what was done, and say what the cohort still needs."""
    from ..sources import importing

    if arguments.kind == "hest":
        made = importing.add_hest(
            arguments.cohort, arguments.folder, arguments.patient, arguments.replace
        )
    else:
        made = [_sample(arguments)]
    print(*made, sep="\n")
    if not made[-1].missing:
        print(
            f"next: peka check {arguments.cohort}\n      peka run own --cohort {arguments.cohort}"
        )


def _sample(arguments: argparse.Namespace):
    """Import the one sample of a Space Ranger folder or of a table."""
    from ..sources import importing

    if arguments.kind == "table":
        raw = importing.read_table(arguments.counts, arguments.coordinates)
    else:
        raw = importing.read_visium(arguments.folder, arguments.bin_um)
    names = (
        "image",
        "sample",
        "patient",
        "um_per_px",
        "orient",
        "replace",
        "organ",
        "disease",
        "license",
    )
    return importing.add_sample(
        arguments.cohort, raw, **{name: getattr(arguments, name) for name in names}
    )
