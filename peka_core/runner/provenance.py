"""Where a number comes from: versions, commit, device."""

import functools
import importlib.metadata
import platform
import subprocess

from ..common.device import device_name, versions
from ..common.folders import PACKAGE


@functools.cache
def commit() -> str:
    """Short git commit of the code; `+` marks changed files. Empty outside a checkout."""
    if not (PACKAGE.parent / "data_manifest.yaml").is_file():
        return ""  # installed: a repository around it is somebody else's

    def git(*words: str) -> str:
        command = ["git", "-C", str(PACKAGE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""


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
    """Commit, device, versions and code for the columns of a table, from a unit's `unit.json`."""
    versions = "; ".join(f"{name} {version}" for name, version in facts["packages"].items())
    made = {"commit": facts["commit"], "device": facts["device"], "versions": versions}
    return made | {"code": facts["unit"].get("code", "")}
