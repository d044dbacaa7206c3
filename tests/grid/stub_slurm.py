"""Stubs of SLURM's commands for Snakemake's plugin. sbatch really runs the job, on this machine.

`install(folder)` puts them into a folder for PATH; states and job numbers are kept beside them.
With STUB_KILL=TEXT, the first job of rule align whose log has this text is killed: half-way.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMANDS = ("sbatch", "srun", "sacct", "squeue", "scancel", "sinfo")


def install(folder: Path) -> Path:
    """Make the commands in a folder; returns it."""
    (folder / "state").mkdir(parents=True)
    for name in COMMANDS:
        python, script, state = (
            shlex.quote(str(part)) for part in (sys.executable, __file__, folder / "state")
        )
        lines = f'#!/bin/sh\nexport STUB_STATE={state}\nexec {python} {script} {name} "$@"\n'
        (folder / name).write_text(lines)
        (folder / name).chmod(0o755)
    return folder


def sbatch(state: Path, words: list[str]) -> None:
    """Start the job of --wrap in the background and print its number."""
    numbers = [int(path.stem) for path in state.glob("*.state")]
    number = max(numbers, default=100) + 1
    while True:
        try:
            (state / f"{number}.state").open("x").write("RUNNING")
            break
        except FileExistsError:
            number += 1
    (state / f"{number}.call").write_text("\n".join(words))
    call = [sys.executable, __file__, "job", str(number), *words]
    subprocess.Popen(call, start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    print(number)


def job(state: Path, words: list[str]) -> None:
    """Run one job and keep how it ended."""
    number, *words = words
    value = lambda name: words[words.index(name) + 1]
    (script,) = (word.removeprefix("--wrap=") for word in words if word.startswith("--wrap="))
    log = Path(value("--output").replace("%j", number))
    with open(log, "w") as out:
        variables = os.environ | {"SLURM_JOB_ID": number}
        running = subprocess.Popen(
            script, shell=True, cwd=value("-D"), env=variables, stdout=out, stderr=out
        )
        (state / f"{number}.pid").write_text(str(running.pid))
        rule, _, wildcards = value("--comment").partition("_wildcards_")
        if rule == "rule_align" and os.environ.get("STUB_KILL"):
            run, name = wildcards.split("_")
            _kill_half_way(running, Path(value("-D"), "runs", run, "grid", f"{name}.log"), state)
        ended = running.wait()
    _end(state, number, "FAILED" if ended else "COMPLETED")


def _kill_half_way(running: subprocess.Popen, log: Path, state: Path) -> None:
    while running.poll() is None and not (state / "killed").exists():
        if log.exists() and os.environ["STUB_KILL"] in log.read_text():
            try:
                (state / "killed").open("x").write(log.stem)
            except FileExistsError:
                return
            _kill(running.pid)
        time.sleep(0.02)


def _kill(pid: int) -> None:
    """Kill a process and all that it started, at once."""
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        process.kill()


def _end(state: Path, number: str, how: str) -> None:
    (state / f"{number}.new").write_text(how)
    os.replace(state / f"{number}.new", state / f"{number}.state")


def srun(_: Path, words: list[str]) -> None:
    """Run the command behind the options."""
    while words[0].startswith("-"):
        words = words[1:]
    sys.exit(subprocess.run(words).returncode)


def sacct(state: Path, words: list[str]) -> None:
    """Print number and state of each job; nothing about accounts."""
    if any("JobIdRaw" in word or "%i" in word for word in words):
        for path in sorted(state.glob("*.state")):
            print(f"{path.stem}|{path.read_text()}")


squeue = sacct  # the plugin asks both for the same columns


def scancel(state: Path, words: list[str]) -> None:
    """Kill jobs."""
    for number in filter(str.isdigit, words):
        _kill(int((state / f"{number}.pid").read_text()))
        _end(state, number, "CANCELLED")


def sinfo(*_) -> None:
    """Print the one partition."""
    print("PARTITION\nstub*")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["STUB_STATE"]), sys.argv[2:])
