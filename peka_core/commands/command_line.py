"""The `peka` command line.

peka list
peka run PROFILE [--plan] [--device DEVICE] [--weights ENCODER=PATH] [-p NAME=VALUE] [--run NAME]
peka run own --cohort DIR [the same options]
peka ladder PROFILE [the same options]
peka fetch PROFILE [--dry-run] [-p NAME=VALUE]
peka plan-grid GRID.yaml [--json FILE]
peka make PROFILE JOB [the options of peka run]
peka score TASK_DIR --embeddings DIR [--protocol NAME] [--set NAME=VALUE] [--json OUT]
peka import visium FOLDER --image FILE --sample NAME --patient NAME --cohort DIR
peka import table COUNTS --coordinates FILE --image FILE --sample NAME --patient NAME --cohort DIR
peka import hest FOLDER --cohort DIR
peka check COHORT
peka export RUN --out DIR [--method NAME] [--space NAME] [--split NAME]
peka predict --model DIR --slide FILE --out DIR [--spots FILE] [--mask GEOJSON]
peka push MODEL --to USER/NAME [--yes]
peka doctor [PROFILE]
"""

import argparse
import contextlib
import inspect
import sys
import time
from pathlib import Path

from ..common.device import check_device
from ..common.errors import PekaError
from ..common.files import CANNOT_WRITE, no_access, write_json
from ..common.typed_values import absolute, pairs_of, read_yaml, weights_of
from ..recipe import METHODS
from ..runner.cohort_folder import has_cohort
from ..runner.profile import Profile, load_profile, profile_titles
from ..runner.profile_checks import check_complete, source_of
from ..runner.run import Run, open_run, run_folder
from ..training_parts import workers
from .check_command import add_check
from .export_command import add_export
from .import_command import add_import
from .interrupts import LastingStream, interrupted_once
from .notebooks import execute_chapters
from .predict_command import add_predict
from .push_command import add_push

BUNDLED_ENCODERS = {  # name -> what it is; licence; gate
    "mini": "bundled, 0.9 M parameters, drawn tissue only; licence MIT; no gate",
    "random": "the network of mini, untrained; licence MIT; no gate",
}
RECIPE_TITLES = {
    "as_written": "the paper's Methods",
    "as_run": "the authors' code",
    "beyond": "ours, for the demo and mini: squared error, larger blocks, ten epochs",
}
OTHER_ENCODERS = {
    "<any timm name>": "timm.create_model(name), with its own licence and gate. "
    "Every named encoder takes --weights NAME=PATH",
    "<FILE.py:FUNCTION>": "your own: a function that returns an Encoder, or (model, preprocess)",
}
INTERRUPTED = "peka: interrupted. Finished work is kept: run the same command again to go on."


def main(words: list[str] | None = None) -> int:
    """Entry point of `peka` and `python -m peka_core`; returns the exit code, 130 after Ctrl-C."""
    out, err = (stream and LastingStream(stream) for stream in (sys.stdout, sys.stderr))
    with interrupted_once(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return _main(words)
        except KeyboardInterrupt:
            line = "\n" if sys.stderr.isatty() else ""  # a progress bar may stand on this one
            print(line + INTERRUPTED, file=sys.stderr)
            return 130
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()


def _main(words: list[str] | None) -> int:
    arguments = _parser().parse_args(words)
    try:
        return arguments.command(arguments) or 0
    except PekaError as error:
        print(f"peka: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(f"peka: {no_access(error)}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peka", description="PEKA, reproduced and taught.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text)
        found.set_defaults(command=function)
        return found

    command("list", _list, "profiles, encoders, teachers and methods, with licence and gate")
    run = command("run", _run, "run notebooks 01 to 06 for a profile")
    _add_run_options(run)
    plan = "print the cost (GB, FLOPs, hours, memory, gates) and run nothing"
    run.add_argument("--plan", action="store_true", help=plan)
    gpus = "GPU for the hours of the plan: V100, T4, L4, RTX4090, A100 or H100"
    run.add_argument("--gpu", default="A100", help=gpus)
    rungs = "what did the work? every rung of a profile's ladder, scope effects, curves"
    _add_run_options(command("ladder", _ladder, rungs))
    fetch = command("fetch", _fetch, "download and verify a profile's files")
    fetch.add_argument("profile")
    dry = "show files and sizes, download nothing"
    fetch.add_argument("--dry-run", action="store_true", help=dry)
    _add_changes(fetch)
    grid = command("plan-grid", _plan_grid, "print units and GPU hours of a grid of runs")
    grid.add_argument("grid", type=absolute, help="a file as in workflow/grids")
    listed = "write the jobs to this file, for workflow/Snakefile, and print nothing"
    grid.add_argument("--json", type=absolute, metavar="FILE", help=listed)
    make = command("make", _make, "make the units of one job of a grid (peka plan-grid)")
    _add_run_options(make)
    make.add_argument("job", help="cohort, teacher, frozen-ENCODER or align-METHOD-SPLIT")
    task = "score embeddings of a HEST-Benchmark task directory under a protocol"
    _add_score_options(command("score", _score, task))
    for add in (add_import, add_check, add_export, add_predict, add_push):
        add(command)
    machine = "Python, packages, device, memory, disk, mirror and tokens of this machine"
    doctor = command("doctor", _doctor, machine)
    also = "also check this profile's encoder and its needs"
    doctor.add_argument("profile", nargs="?", default="", help=also)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a run: profile, device, weights, changed values, folder."""
    parser.add_argument("profile")
    device = "auto, cpu, cuda or cuda:N (default: %(default)s)"
    parser.add_argument("--device", default="auto", help=device)
    weights = "a local file of weights, which is used instead of a download"
    parser.add_argument(
        "--weights", action="append", default=[], metavar="ENCODER=PATH", help=weights
    )
    _add_changes(parser)
    run = "folder under runs/ (default: the profile's name; own-DIR with --cohort)"
    parser.add_argument("--run", default="", metavar="NAME", help=run)
    encoder = "another encoder than the profile's: a name of `peka list`, or FILE.py:FUNCTION"
    parser.add_argument("--encoder", default="", metavar="NAME", help=encoder)
    cohort = "your own cohort directory, for a profile with `source: directory`, such as own"
    parser.add_argument("--cohort", type=absolute, metavar="DIR", help=cohort)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    change = {"action": "append", "default": [], "help": "change a value of the profile"}
    parser.add_argument("-p", metavar="NAME=VALUE", **change)


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    task = "folder with adata/, splits/ and var_*genes.json; patches/ is not needed"
    parser.add_argument("task_dir", type=absolute, help=task)
    files = "folder of <sample>.h5 with embeddings and barcodes, or features and coords (TRIDENT)"
    parser.add_argument("--embeddings", required=True, type=absolute, metavar="DIR", help=files)
    protocols = "strict, hest_bench, peka_paper or peka_official"
    parser.add_argument("--protocol", default="strict", help=protocols)
    rule = {"action": "append", "default": [], "help": "change a rule, e.g. mask_zeros=false"}
    parser.add_argument("--set", metavar="NAME=VALUE", **rule)
    out = "file for the score of every gene in every split"
    parser.add_argument("--json", type=absolute, metavar="OUT", help=out)


def _values(items: list[str], option: str) -> dict:
    """`["epochs=2"]` -> `{"epochs": 2}`: values as YAML reads them."""
    return {
        name: read_yaml(value, f"{option} {name}={value}", "a value as YAML writes it")
        for name, value in pairs_of(items, option).items()
    }


def _named(arguments: argparse.Namespace) -> tuple[Profile, dict[str, str], str]:
    """The profile with its changed values, local weights as absolute paths, and the run's name."""
    overrides = _values(arguments.p, "-p")
    if arguments.encoder:
        overrides["encoder"] = arguments.encoder
    weights = weights_of(arguments.weights)
    weights = {name: str(absolute(path)) for name, path in weights.items()}
    run = arguments.run
    if arguments.cohort:
        if load_profile(arguments.profile).source != "directory":
            raise PekaError(
                f"--cohort needs a profile with `source: directory`, such as own; "
                f"{arguments.profile} makes its own cohort"
            )
        overrides["path"] = str(arguments.cohort)
        run = run or f"{Path(arguments.profile).stem}-{arguments.cohort.resolve().name}"
    profile = load_profile(arguments.profile, overrides)
    check_complete(profile)
    return profile, weights, run


def _run(arguments: argparse.Namespace) -> int:
    """Execute the notebooks, and report."""
    if arguments.plan:
        from .plan import plan

        profile, weights, _ = _named(arguments)
        print(plan(profile, arguments.gpu, weights))
        return 0
    if workers.count() > 1:
        raise PekaError(
            "torchrun cannot execute notebooks. Give it `peka make` for the jobs that need several "
            "GPUs (CONTRIBUTING.md, Several GPUs), and then `peka run` without torchrun."
        )
    work = _open(arguments)
    parameters = {
        "profile": work.profile.file,
        "run": work.folder.name,
        "device": arguments.device,
        "weights": work.weights,
        "overrides": work.profile.overrides,
    }
    started = time.perf_counter()
    if not execute_chapters(work, parameters):
        return 1
    _report(work.folder, time.perf_counter() - started)
    return 0


def _open(arguments: argparse.Namespace) -> Run:
    """Open the run after a check that everything it needs is here or can be downloaded."""
    from ..models.encoder_files import preflight

    profile, weights, run = _named(arguments)
    source, encoders = source_of(profile.source), list(profile.encoders)
    if arguments.command is _ladder:
        encoders += filter(None, (getattr(rung, "encoder", "") for rung in profile.ladder))
    checks = [lambda: check_device(arguments.device), lambda: preflight(encoders, weights)]
    if hasattr(source, "preflight") and not has_cohort(run_folder(run, profile), profile.source):
        checks.append(lambda: _check_source(source, profile))
    _raise_all(checks)
    work = open_run(profile.file, run, arguments.device, weights, profile.overrides)
    _fetch_teacher(profile)
    return work


def _check_source(source, profile: Profile) -> None:
    """Check what a source needs, and that the splits of a user's own cohort fit `strict`."""
    from ..protocols import PROTOCOLS

    cohort = source.preflight(**_options_of(source.preflight, profile))
    if cohort is not None:
        PROTOCOLS["strict"].splits(cohort)


def _raise_all(checks: list) -> None:
    """Call all checks, then raise their errors as one."""
    problems = []
    for check in checks:
        try:
            check()
        except PekaError as problem:
            problems.append(str(problem))
    if problems:
        raise PekaError("\n".join(problems))


def _options_of(function, profile: Profile) -> dict:
    """The profile's source options that a function of its source takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in profile.source_options.items() if name in known}


def _ladder(arguments: argparse.Namespace) -> None:
    """Make the table of every study of a profile; finished units are reused."""
    from ..studies import ladder as studies
    from ..studies.tables import save_table

    work = _open(arguments)
    splits = [split.name for split in work.cohort().splits]
    for name, (study, how_many) in studies.STUDIES.items():
        if name in studies.DRAWN_ONLY and work.profile.source != "demo":
            continue
        started = time.perf_counter()
        path = save_table(study(work, splits[:how_many]), work.folder / "results", name)
        print(f"{path}: {time.perf_counter() - started:.0f} s", flush=True)


def _plan_grid(arguments: argparse.Namespace) -> None:
    """Print the plan of a grid, or write its jobs as JSON."""
    from .grid import in_words, planned, read_grid

    grid = read_grid(arguments.grid)
    jobs = planned(grid)
    if arguments.json:
        write_json(arguments.json, jobs)
    else:
        print(*in_words(grid, jobs), sep="\n")


def _make(arguments: argparse.Namespace) -> None:
    """Make the units of one job of a run; finished ones are found and kept."""
    from .grid import job_named, make_units

    job = job_named(_named(arguments)[0], arguments.job)
    make_units(_open(arguments), job)


def _score(arguments: argparse.Namespace) -> None:
    """Score the given embeddings, print the means, and write the score of each gene."""
    from ..studies.scoring import in_words, score_embeddings

    rules = _values(arguments.set, "--set")
    scores = score_embeddings(arguments.task_dir, arguments.embeddings, arguments.protocol, rules)
    print(*in_words(scores), sep="\n")
    if arguments.json:
        write_json(arguments.json, scores)


def _doctor(arguments: argparse.Namespace) -> int:
    """Print every check; return 1 if one is a problem."""
    from .doctor import examine

    lines = list(examine(arguments.profile))
    for state, name, found in lines:
        print(f"{state:<8} {name:<18} {found}")
    return int(any(state == "problem" for state, _, _ in lines))


def _report(folder: Path, seconds: float) -> None:
    """Print the table of results and the folders of figures and notebooks."""
    import pandas as pd

    from ..studies.tables import MADE

    path = folder / "results" / "summary.csv"
    table = pd.read_csv(path).drop(columns=list(MADE), errors="ignore").fillna("")
    print(f"\n{path.parent}:\n\n{table.to_string(index=False)}\n\nfigures: {folder / 'figures'}")
    print(f"executed notebooks: {folder / 'notebooks'}\ntime: {seconds / 60:.1f} min")


def _list(arguments: argparse.Namespace) -> None:
    """Print every name that a profile can use."""
    from ..models.encoder_files import manifest_entries
    from ..teachers import TEACHERS

    from_files = {
        name: f"{row.title}; {row.terms}; {row.marks}; real weights not run here"
        for name, row in manifest_entries().items()
    }
    for title, named in (
        ("profiles", profile_titles()),
        ("encoders", BUNDLED_ENCODERS | from_files | OTHER_ENCODERS),
        ("teachers", {name: teacher.description for name, teacher in TEACHERS.items()}),
        ("methods", METHODS),
        ("recipes, -p recipe=NAME", RECIPE_TITLES),
    ):
        print(f"{title}\n" + "".join(f"  {name:<28} {text}\n" for name, text in named.items()))


def _fetch(arguments: argparse.Namespace) -> None:
    """Download and verify slides, encoders and teacher of a profile; --dry-run only shows them."""
    from ..models.encoder_files import find_weights, location, manifest_entries

    profile = load_profile(arguments.profile, _values(arguments.p, "-p"))
    dry_run = arguments.dry_run
    _fetch_teacher(profile, dry_run)
    source = source_of(profile.source)
    if hasattr(source, "fetch"):
        source.fetch(dry_run=dry_run, **_options_of(source.fetch, profile))
    else:
        print(f"profile {profile.name}: there are no slides to fetch")

    def show(row) -> None:
        where = location(row)[1] if dry_run else find_weights(row)[0]
        print(f"encoder {row.name}: {where}", flush=True)

    known = [manifest_entries()[name] for name in profile.encoders if name in manifest_entries()]
    _raise_all([lambda row=row: show(row) for row in known])


def _fetch_teacher(profile: Profile, dry_run: bool = False) -> None:
    """Download and verify the files of the profile's teacher, if it has any."""
    from ..downloads.fetch import fetch
    from ..downloads.manifest import source_files
    from ..teachers import TEACHERS

    if files := TEACHERS[profile.teacher].files(profile.teacher_options):
        fetch(source_files(profile.teacher, files), dry_run)
