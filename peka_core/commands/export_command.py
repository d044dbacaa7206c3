"""`peka export RUN --out DIR`: a finished run's model as a folder to share."""

import argparse
import json
from pathlib import Path

from ..common import folders
from ..common.errors import PekaError
from ..common.files import one_name
from ..common.typed_values import absolute, weights_of
from ..models.encoder_files import weights_digest
from ..runner.cohort_folder import has_cohort
from ..runner.profile import bundled
from ..runner.run import Run, open_run


def add_export(command) -> None:
    """Add `peka export`; `command(name, function, text)` gives its parser."""
    parser = command("export", _export, "write the model of a finished run into a folder to share")
    parser.add_argument("run", help="name of the run, a folder under runs/")
    out = "the new folder of the model"
    parser.add_argument("--out", required=True, type=absolute, metavar="DIR", help=out)
    method = "bat or another method of `peka list`; none is the frozen encoder (default: bat)"
    parser.add_argument("--method", default="bat", metavar="NAME", help=method)
    space = "features that the regression reads, encoder or projected (default: encoder)"
    parser.add_argument("--space", default="encoder", metavar="NAME", help=space)
    split = "train on the training spots of this split only, such as sections/0 (default: all)"
    parser.add_argument("--split", default="all", metavar="NAME", help=split)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    weights = "a file of weights of the run that is no longer where it was"
    parser.add_argument(
        "--weights", action="append", default=[], metavar="ENCODER=PATH", help=weights
    )
    profile = "the file of the run's profile, if it is your own"
    parser.add_argument("--profile", type=absolute, metavar="FILE", help=profile)


def _export(arguments: argparse.Namespace) -> None:
    """Write the model and print what it is and what can be expected of it."""
    from ..studies.model_folder import check_free

    check_free(arguments.out)
    weights = weights_of(arguments.weights)
    work = open_finished(arguments.run, arguments.device, arguments.profile, weights)
    from ..predict import read_card
    from ..studies.export import export

    words = arguments.method, arguments.space, arguments.split
    card = read_card(folder := export(work, arguments.out, *words))
    print(f"{folder}: {card['genes']} genes, {card['supported']} of them supported")
    print(*card["notes"], sep="\n")
    print(f"read {folder / 'README.md'} before you share it; licences are in it")


def open_finished(
    name: str,
    device: str = "auto",
    profile: Path | None = None,
    weights: dict[str, str] | None = None,
) -> Run:
    """Open a run again by its name alone, with the values and weights that it was started with.

    Args:
        profile: the file of its profile, if it is not a bundled one.
        weights: new places of files of weights, `{"encoder name": "path"}`.

    Raises:
        PekaError: there is no such run, its profile is a file that is not given, its weights have
            changed or are not where they were, or it has no cohort yet.
    """
    folder = folders.root() / "runs" / one_name(name, "run")
    started = _read(folder / "run.json")
    if profile is None and started["profile"] not in bundled():
        raise PekaError(
            f"{folder}: this run has a profile of your own, {started['profile']}. Name its file: "
            "--profile FILE"
        )
    files = _weights(folder / "weights.json", weights or {})
    source = str(profile or started["profile"])
    work = open_run(source, name, device, files, started["overrides"])
    if not has_cohort(work.folder, work.profile.source):
        raise PekaError(
            f"{work.folder} has no finished cohort of this code. Finish the run first, with the "
            "command that started it."
        )
    return work


def _weights(record: Path, given: dict[str, str]) -> dict[str, str]:
    """Files of weights of a run by encoder: those of its record, or at their new places."""
    known = _read(record) if record.exists() else {}
    files = {name: facts["path"] for name, facts in known.items()} | given
    for name, path in files.items():
        found, expected = weights_digest(name, path), known.get(name, {}).get("sha256")
        if found != expected:
            raise PekaError(
                f"{path}: the run used other weights of {name!r} (sha256 "
                f"{str(expected)[:12]}, and this file has {found[:12]}). Give the same file: "
                f"--weights {name}=PATH"
            )
    return files


def _read(path: Path) -> dict:
    """A JSON file of a run."""
    if not path.is_file():
        runs = sorted(file.parent.name for file in path.parents[1].glob("*/run.json"))
        raise PekaError(
            f"{path} is missing, so there is no run {path.parent.name!r}; there are "
            f"{', '.join(runs) or 'none'}. Make one with `peka run`."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PekaError(
            f"{path} is damaged ({error}); expected JSON. Choose another run."
        ) from error
