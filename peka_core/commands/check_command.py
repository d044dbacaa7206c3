"""`peka check COHORT`: what a cohort holds, what is odd about it, and where its rulers are."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..common.typed_values import absolute


def add_check(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to `peka`; `command(name, function, text)` makes its parser."""
    text = "check every count and tile of a cohort directory, and show its rulers"
    parser = command("check", _check, text)
    parser.add_argument("cohort", type=absolute, metavar="COHORT", help="a cohort directory")


def _check(arguments: argparse.Namespace) -> int:
    """Finish a killed import, and print sections, warnings and rulers.

    Returns 1 if the chapters cannot use the cohort.
    """
    from ..common.errors import PekaError
    from ..layout.checks import validate
    from ..sources import directory, staging
    from ..sources.growing import quietly_open

    path = arguments.cohort
    if staging.finish_killed(path):
        print("note     an import was killed while its files were moved, and is finished now")
    cohort = quietly_open(path)
    if cohort is None:
        raise PekaError(
            f"{path}: no section in it; expected a cohort with adata/ and patches/. Import a "
            "sample first: peka import visium --help"
        )
    for section in cohort.sections:
        row = cohort.samples.loc[section.sample]
        print(
            f"section  {section.sample}: patient {row.patient}, {len(section.barcodes)} spots, "
            f"{len(section.genes)} genes, {row.um_per_px:.4f} um/px"
        )
    splits = ", ".join(split.name for split in cohort.splits) or "none"
    print(f"splits   {splits}; target genes: {len(cohort.genes)}")
    for note in validate(cohort):
        print(f"note     {note}")
    for section in cohort.sections:
        print(f"ruler    {_ruler(path, section)}")
    try:
        directory.preflight(path)
    except PekaError as error:
        print(f"problem  {error}")
        return 1
    print(f"ready    peka run own --cohort {path}")
    return 0


def _ruler(path: Path, section) -> str:
    """The ruler of a section; it is drawn from its tiles if there is none."""
    from ..common.errors import PekaError
    from ..slides import ruler

    file = path / "ruler" / f"{section.sample}.png"
    if file.exists():
        return str(file)
    if section.patches is None:
        return f"{section.sample}: no tiles, so there is nothing to draw"
    try:
        return f"{ruler.save_figure(ruler.draw_tiles(section), file)} (drawn from tiles)"
    except PekaError as error:  # a cohort that belongs to others
        return str(error)
