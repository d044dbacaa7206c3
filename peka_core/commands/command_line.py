"""The `peka` command line: papermill over the notebooks for a profile.

peka list
peka run PROFILE [--plan] [--device auto|cpu|cuda] [--weights ENCODER=PATH] [-p name=value] [--run NAME]
peka run own --cohort DIR [the same options]
peka ladder PROFILE [the same options]
peka fetch PROFILE [--dry-run]
peka score TASK_DIR --embeddings DIR [--protocol NAME] [--set NAME=VALUE] [--json OUT]
peka doctor [PROFILE]
"""

import argparse
import contextlib
import inspect
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

from .. import places
from ..device import check_device
from ..errors import PekaError
from ..files import CANNOT_WRITE, alone, no_access, write_json
from ..recipe import METHODS
from ..runner import run as workspace
from ..runner.profile import Profile, load_profile, profile_names
from ..runner.profile_checks import check_complete, source_of
from ..values import absolute, read_yaml

CHAPTERS = ("01_data", "02_teacher_embeddings", "03_alignment", "04_evaluation", "05_figures")

WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar
ENCODERS = {  # name -> what it is; licence; gate
    "mini": "bundled, 0.9 M parameters, drawn tissue only; licence MIT; no gate",
    "random": "the network of mini, untrained; licence MIT; no gate",
}
OTHERS = {
    "<any timm name>": "timm.create_model(name); its own licence and gate. Every encoder: --weights NAME=PATH"
}


INTERRUPTED = "peka: interrupted. What is finished stays: run the same command again to go on."


def main(words: list[str] | None = None) -> int:
    """Entry point of `peka` and `python -m peka_core`; returns the exit code, 130 after Ctrl-C."""
    with (
        _interrupted_once(),
        contextlib.redirect_stdout(_lasting(sys.stdout)),
        contextlib.redirect_stderr(_lasting(sys.stderr)),
    ):
        try:
            return _main(words)
        except KeyboardInterrupt:
            print(
                ("\n" if sys.stderr.isatty() else "") + INTERRUPTED, file=sys.stderr
            )  # a progress bar may stand on this line
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
        return 1
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(f"peka: {no_access(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _interrupted_once():
    """The first Ctrl-C ends what runs; more within five seconds are ignored while that cleans up (kernels, half-written files)."""
    before = signal.getsignal(signal.SIGINT)
    if (
        before is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield  # interrupts are ignored (nohup), or somebody else's
        return

    last = -math.inf

    def once(*_):
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            _end_kernels()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_kernels() -> None:
    """End the kernels of this process and what they started, at once: asked to shut down, they would go on for seconds and say so.

    jupyter_client gives each a session of its own; other processes that were started share ours and end with us.
    """
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if hasattr(os, "getsid") and os.getsid(process.pid) != os.getsid(0):
                process.kill()


class _Lasting:
    """A stream that outlives its reader: once `peka … | head` has read enough, the rest goes nowhere and the work goes on."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or lose the text where nobody reads any more."""
        self._or_nowhere(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what is buffered where nobody reads any more."""
        self._or_nowhere(self._stream.flush)

    def _or_nowhere(self, call, *words) -> None:
        try:
            call(*words)
        except BrokenPipeError:  # what the stream still holds follows into the void
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def _lasting(stream):
    """The stream, lasting; None where the process was started without one."""
    return _Lasting(stream) if stream else stream


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peka", description="PEKA, reproduced and taught.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list", help="profiles, encoders, teachers and methods, with licence and gate"
    )
    listing.set_defaults(command=_list)
    run = commands.add_parser("run", help="run notebooks 01 to 05 for a profile")
    _add_run_options(run)
    run.add_argument(
        "--plan",
        action="store_true",
        help="print what it would cost (GB, FLOPs, hours, memory, gates), run nothing",
    )
    run.add_argument(
        "--gpu", default="A100", help="GPU of the plan's hours: V100, T4, L4, RTX4090, A100 or H100"
    )
    run.set_defaults(command=_run)
    ladder = commands.add_parser(
        "ladder", help="what did the work? every rung of a profile's ladder, scope effects, curves"
    )
    _add_run_options(ladder)
    ladder.set_defaults(command=_ladder)
    fetch = commands.add_parser("fetch", help="download and verify a profile's files")
    fetch.add_argument("profile")
    fetch.add_argument(
        "--dry-run", action="store_true", help="show files and sizes, download nothing"
    )
    fetch.set_defaults(command=_fetch)
    score = commands.add_parser(
        "score", help="score embeddings of a HEST-Benchmark task directory under a protocol"
    )
    score.add_argument(
        "task_dir", type=absolute, help="adata/, splits/, var_*genes.json; patches/ may be missing"
    )
    score.add_argument(
        "--embeddings",
        required=True,
        type=absolute,
        metavar="DIR",
        help="<sample>.h5 with embeddings and barcodes, or features and coords (TRIDENT)",
    )
    score.add_argument(
        "--protocol", default="strict", help="strict, hest_bench, peka_paper or peka_official"
    )
    score.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a rule, e.g. mask_zeros=false",
    )
    score.add_argument(
        "--json", type=absolute, metavar="OUT", help="write every gene's score of every split"
    )
    score.set_defaults(command=_score)
    doctor = commands.add_parser(
        "doctor", help="Python, packages, device, memory, disk, mirror and tokens of this machine"
    )
    doctor.add_argument(
        "profile", nargs="?", default="", help="also look for this profile's encoder"
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """What names a run: profile, device, weights, changed values, folder."""
    parser.add_argument("profile")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ENCODER=PATH",
        help="local weights, no hub",
    )
    parser.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a value of the profile",
    )
    parser.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="folder under runs/ (default: the profile's name; own-DIR with --cohort)",
    )
    parser.add_argument(
        "--cohort",
        type=absolute,
        metavar="DIR",
        help="cohort directory of your own, for a profile with source directory: own",
    )


def _pairs(items: list[str], option: str) -> dict[str, str]:
    """`["a=1"]` -> `{"a": "1"}`."""
    if bad := [item for item in items if not item.partition("=")[0].strip() or "=" not in item]:
        raise PekaError(f"{option} takes NAME=VALUE, not {bad[0]!r}")
    return dict(item.split("=", 1) for item in items)


def _values(items: list[str], option: str) -> dict:
    """`["epochs=2"]` -> `{"epochs": 2}`: values as YAML reads them."""
    return {
        name: read_yaml(value, f"{option} {name}={value}", "a value as YAML writes it")
        for name, value in _pairs(items, option).items()
    }


def _named(arguments: argparse.Namespace) -> tuple[Profile, dict[str, str], str]:
    """The profile with its changed values, local weights, and the run's name (empty: the profile's); every path is absolute."""
    overrides = _values(arguments.p, "-p")
    weights = {
        name: str(absolute(path)) for name, path in _pairs(arguments.weights, "--weights").items()
    }
    run = arguments.run
    if arguments.cohort:
        if load_profile(arguments.profile).source != "directory":
            raise PekaError(
                f"--cohort belongs to a profile with source directory, as own; {arguments.profile} makes its own cohort"
            )
        overrides["path"] = str(arguments.cohort)
        run = run or f"{Path(arguments.profile).stem}-{arguments.cohort.resolve().name}"
    profile = load_profile(arguments.profile, overrides)
    check_complete(profile)
    return profile, weights, run


def _run(arguments: argparse.Namespace) -> int:
    """Execute the notebooks in order; stop at the first that fails."""
    if arguments.plan:
        from .plan import plan

        profile, weights, _ = _named(arguments)
        print(plan(profile, arguments.gpu, weights))
        return 0
    work = _open(arguments)
    parameters = {
        "profile": work.profile.file,
        "run": work.folder.name,
        "device": arguments.device,
        "weights": work.weights,
        "overrides": work.profile.overrides,
    }
    started = time.perf_counter()
    for chapter in CHAPTERS:
        if not execute(
            places.bundled("notebooks") / f"{chapter}.ipynb", work.folder / "notebooks", parameters
        ):
            return 1
    _report(work.folder, time.perf_counter() - started)
    return 0


def _open(arguments: argparse.Namespace) -> workspace.Run:
    """The run, once all that it will need is here or can come: weights first, which are cheap to ask for, then slides, then the teacher."""
    from ..models.encoder_files import preflight

    profile, weights, run = _named(arguments)
    source, folder = _source(profile), workspace.run_folder(run, profile)
    ladder = (
        [rung.encoder for rung in profile.ladder if getattr(rung, "encoder", "")]
        if arguments.command is _ladder
        else []
    )
    checks = [
        lambda: check_device(arguments.device),
        lambda: preflight(profile.encoders + ladder, weights),
    ]
    if hasattr(source, "preflight") and not workspace.has_cohort(folder, profile.source):
        checks.append(lambda: _check_source(source, profile))
    problems = []
    for check in checks:
        try:
            check()
        except PekaError as problem:
            problems.append(str(problem))
    if problems:
        raise PekaError("\n".join(problems))
    work = workspace.open_run(profile.file, run, arguments.device, weights, profile.overrides)
    _fetch_teacher(profile)
    return work


def _check_source(source, profile: Profile) -> None:
    """Ask a source for what its cohort needs; splits of a user's own cohort must fit `strict` too."""
    from ..protocols import PROTOCOLS

    cohort = source.preflight(**_options_of(source.preflight, profile))
    if cohort is not None:
        PROTOCOLS["strict"].splits(cohort)


def _source(profile: Profile):
    """The module that builds a profile's cohort."""
    return source_of(profile.source)


def _options_of(function, profile: Profile) -> dict:
    """Those of the profile's source options that a function of its source takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in profile.source_options.items() if name in known}


def _ladder(arguments: argparse.Namespace) -> None:
    """Every study of a profile, one table each; finished units are reused."""
    from ..studies import ladder as studies
    from ..studies.tables import save_table

    work = _open(arguments)
    splits = [split.name for split in work.cohort().splits]
    for name, (study, how_many) in studies.STUDIES.items():
        if name in studies.DRAWN_ONLY and work.profile.source != "demo":
            continue
        started = time.perf_counter()
        path = save_table(study(work, ",".join(splits[:how_many])), work.folder / "results", name)
        print(f"{path}: {time.perf_counter() - started:.0f} s", flush=True)


def _score(arguments: argparse.Namespace) -> None:
    """Score given embeddings, print the means, write the genes."""
    from ..studies.scoring import in_words, score_embeddings

    scores = score_embeddings(
        arguments.task_dir,
        arguments.embeddings,
        arguments.protocol,
        _values(arguments.set, "--set"),
    )
    print(*in_words(scores), sep="\n")
    if arguments.json:
        write_json(arguments.json, scores)


def _doctor(arguments: argparse.Namespace) -> int:
    """Print every check; 1 where one is a problem."""
    from .doctor import examine

    lines = list(examine(arguments.profile))
    for state, name, found in lines:
        print(f"{state:<8} {name:<18} {found}")
    return int(any(state == "problem" for state, _, _ in lines))


def execute(notebook: Path, folder: Path, parameters: dict) -> bool:
    """Execute one notebook with papermill into `folder`; the result is there whole or not at all.

    A failing notebook is kept as `<name>.failed.ipynb`, and its cell's message is the last thing printed.
    """
    with alone(folder / notebook.name):
        return _execute(notebook, folder, parameters)


def _execute(notebook: Path, folder: Path, parameters: dict) -> bool:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    unfinished, failed = folder / f".{notebook.name}", folder / f"{notebook.stem}.failed.ipynb"
    started = time.perf_counter()
    print(f"{notebook.stem} …", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            unfinished,
            parameters=parameters,
            kernel_name="python3",
            cwd=_home(notebook),
            progress_bar=sys.stderr.isatty(),
            log_output=False,
            request_save_on_cell_execute=False,
            extra_arguments=[
                "--IPKernelApp.log_level=50"
            ],  # it warns of talking to itself over TCP
        )
        _clean(unfinished)
        os.replace(unfinished, folder / notebook.name)
    except DeadKernelError:
        print(
            f"{notebook.name}: its process was killed, most often for want of memory. What is finished is kept: run the "
            "same command again; if it dies at the same place, lower batch_size (-p batch_size=32 --run NAME).",
            file=sys.stderr,
        )
        return False
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # the signal reached the kernel alone
            raise KeyboardInterrupt from error
        os.replace(unfinished, failed)
        print(f"{notebook.name} failed; its cells are in {failed}", file=sys.stderr)
        print(f"cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    print(f"{notebook.stem}: {time.perf_counter() - started:.0f} s", flush=True)
    return True


def _home(notebook: Path) -> Path:
    """Where a notebook works: in its own folder, but never inside an installed package."""
    return places.root() if notebook.is_relative_to(places.PACKAGE) else notebook.parent


def _clean(path: Path) -> None:
    """Drop what only a live notebook can show or what changes from run to run: timings and progress bars."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    book.metadata.pop("papermill", None)
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]
    nbformat.write(book, path)


def _report(folder: Path, seconds: float) -> None:
    """Print the results table and where the figures are."""
    import pandas as pd

    from ..studies.tables import MADE

    table = folder / "results" / "summary.csv"
    print(f"\n{table.parent}:\n")
    print(
        pd.read_csv(table)
        .drop(columns=list(MADE), errors="ignore")
        .fillna("")
        .to_string(index=False)
    )
    print(
        f"\nfigures: {folder / 'figures'}\nexecuted notebooks: {folder / 'notebooks'}\ntime: {seconds / 60:.1f} min"
    )


def _list(arguments: argparse.Namespace) -> None:
    """Print what can be named in a profile."""
    from ..models.encoder_files import rows
    from ..teachers import TEACHERS

    from_files = {
        name: f"{row.title}; {row.terms}; {row.marks}; real weights not run here"
        for name, row in rows().items()
    }
    encoders = ENCODERS | from_files | OTHERS
    teachers = {name: teacher.about for name, teacher in TEACHERS.items()}
    profiles = {name: load_profile(name).title for name in profile_names()}
    for title, named in (
        ("profiles", profiles),
        ("encoders", encoders),
        ("teachers", teachers),
        ("methods", METHODS),
    ):
        print(f"{title}\n" + "".join(f"  {name:<28} {text}\n" for name, text in named.items()))


def _fetch(arguments: argparse.Namespace) -> None:
    """Download and verify what a profile needs: slides or sections, encoders, the teacher; with --dry-run show it."""
    from ..models.encoder_files import find_weights, rows, whereabouts

    profile, closed = load_profile(arguments.profile), []
    _fetch_teacher(profile, arguments.dry_run)
    source = _source(profile)
    if hasattr(source, "fetch"):
        source.fetch(dry_run=arguments.dry_run, **_options_of(source.fetch, profile))
    else:
        print(f"profile {profile.name}: no slides to fetch, the cohort is drawn here or your own")
    for row in [rows()[name] for name in profile.encoders if name in rows()]:
        try:
            print(
                f"encoder {row.name}: {whereabouts(row)[1] if arguments.dry_run else find_weights(row)[0]}",
                flush=True,
            )
        except PekaError as problem:
            closed.append(str(problem))
    if closed:
        raise PekaError("\n".join(closed))


def _fetch_teacher(profile: Profile, dry_run: bool = False) -> None:
    """Have the files of the profile's teacher here, verified; only scFoundation has any."""
    if profile.teacher == "scfoundation":
        from ..models.scfoundation import fetch_files

        fetch_files(profile.teacher_options, dry_run)
