"""The files of a teacher: given by the user, or pinned in the manifest and fetched."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from ..common.device import best_device
from ..common.errors import PekaError
from ..common.files import sha256_once
from ..downloads.fetch import fetch
from ..downloads.manifest import load_manifest, source_files
from .teacher_spots import check_choices


@dataclass(frozen=True)
class TeacherFiles:
    """Which files a teacher reads.

    Attributes:
        source: the teacher's name, and its source in the manifest.
        pinned: option of the teacher -> path of the file in the manifest.
    """

    source: str
    pinned: dict[str, str]

    def given(self, option: str, path: str | Path) -> Path:
        """The user's own file; PekaError where it is not there or may not be read."""
        if not Path(path).is_file():
            step = f"give the path of {Path(self.pinned[option]).name}, or none to fetch it"
            raise PekaError(f"{self.source}: no {option} at {path}; {step}")
        if not os.access(path, os.R_OK):
            raise PekaError(f"{path}: you have no permission to read this {option}")
        return Path(path)

    def local(self, option: str, path: str | Path | None) -> Path:
        """The given file, else the pinned one, which is fetched and verified."""
        return Path(path or fetch(source_files(self.source, [self.pinned[option]]))[0])

    def wanted(self, options: dict) -> list[str]:
        """The files of the manifest that the options do not replace."""
        return [file for option, file in self.pinned.items() if not options.get(option)]

    def digests(self, options: dict) -> dict[str, str]:
        """Option -> sha256 of the given file, or of the pinned one."""
        entries = _entry(self.source)["files"]
        return {
            option: sha256_once(self.given(option, options[option]))
            if options.get(option)
            else entries[file]["sha256"]
            for option, file in self.pinned.items()
        }

    def named(self, options: dict, without_effect: tuple[str, ...]) -> dict:
        """Options that can change a number, with digests in place of files; they name a unit."""
        left_out = (*without_effect, *self.pinned)
        return {k: v for k, v in options.items() if k not in left_out} | self.digests(options)

    @property
    def license(self) -> str:
        """What the manifest says of the licences of code, vocabulary and weights."""
        return _entry(self.source)["license"]


def settle_options(teacher, files: TeacherFiles, choices: dict[str, tuple]) -> None:
    """Check the options of a published teacher before work starts, and fill in what they leave out.

    It sets `device`; `budget`, the largest number of tokens in a batch with padding; and `paths`,
    the user's own files by option.

    Raises:
        PekaError: an option has a value that is not in `choices`, or a file is not there.
    """
    teacher.device = teacher.device or best_device()
    teacher.budget = teacher.tokens or (4_096 if str(teacher.device) == "cpu" else 32_768)
    check_choices(files.source, teacher, choices)
    teacher.paths = {option: getattr(teacher, option) for option in files.pinned}
    for option, path in teacher.paths.items():
        if path:
            files.given(option, path)


@functools.lru_cache
def _entry(source: str) -> dict:
    """The teacher's entry in the manifest."""
    return load_manifest()["sources"][source]
