"""Where a number comes from: versions, commit, device."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from ..common.device import device_name, versions
from ..common.folders import PACKAGE


@functools.cache
def commit() -> str:
    """Short git commit of the code; `+` marks changed files. Empty outside a checkout."""
    if not (PACKAGE.parent / "data_manifest.yaml").is_file():
        return ""  # installed: a repository around it is somebody else's
    try:
        head = _git(PACKAGE, "rev-parse", "--short=10", "HEAD")
        return head + (
            "+" if _git(PACKAGE, "status", "--porcelain", "--untracked-files=no", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def provenance(device: str = "") -> dict:
    """Versions, commit and device, for `unit.json` and tables; without a device, the best one."""
    return {
        "peka_core": importlib.metadata.version("peka-core"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "device": device_name(device),
    }


def maker(facts: dict) -> dict[str, str]:
    """What made a number, in the columns of a table: commit, device, versions and code.

    Args:
        facts: what the unit's `unit.json` says.
    """
    versions = "; ".join(f"{name} {version}" for name, version in facts["packages"].items())
    code = facts["unit"].get("code", "")
    return {name: facts[name] for name in ("commit", "device")} | {
        "versions": versions,
        "code": code,
    }
