"""A run: one profile and the folder of its results. The steps of its work are in stages.py.

work = open_run("demo")
work.cohort()              the open cohort, which is built if it is missing
work.tiles()               tiles of all spots
work.rows("patients/0")    training and test spots of a split
work.encoder()             the profile's encoder, on this run's device
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import folders
from ..common.device import check_device
from ..common.errors import PekaError
from ..common.files import write_json, write_whole
from ..common.typed_values import absolute
from ..drawn.worlds import OFF, OWN, World
from ..models import own_file
from ..models.encoder_files import weights_digest
from .code import code_of, code_of_source
from .cohort_folder import build_cohort, claim_of, code_in
from .profile import Profile, load_profile
from .profile_checks import OWN_NAMES, check_complete, source_of
from .provenance import commit, provenance
from .units import Unit, digest_of, of_other_code

if TYPE_CHECKING:  # these take seconds to import, and not every chapter or command needs them
    from ..cohort import Cohort, Split
    from ..encoders import Encoder
    from ..protocols import Protocol

# A run that came with the repository has this file, which names its units (scripts/publish.py).
PUBLISHED = "published.txt"


def open_run(
    profile: str = "demo",
    run: str = "",
    device: str = "auto",
    weights: dict | None = None,
    overrides: dict | None = None,
) -> "Run":
    """Open `runs/<run>/` for a profile; the folder is made on first use.

    Args:
        profile: name of a bundled profile or path of a YAML file.
        run: name of the folder under `runs/`; empty means the profile's name.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        weights: local weights, `{"encoder name": "path"}`; their digests are kept in weights.json.
        overrides: profile values to change, by flat name.

    Raises:
        PekaError: a name is unknown, a value does not fit, the device or weights are missing, or
            the folder was started with other values or for a cohort that has changed.
    """
    loaded, device = load_profile(profile, overrides), check_device(device)
    check_complete(loaded)
    if loaded.overrides and run in ("", None):
        raise PekaError(
            "a run with changed values needs a name of its own: add --run NAME "
            '(in a notebook: run = "NAME")'
        )
    folder = _folder_for_this_code(run_folder(run, loaded), loaded.source)
    if not isinstance(weights or {}, Mapping):
        raise PekaError(f'weights must be a mapping such as {{"mini": "path"}}, not {weights!r}')
    files = {name: absolute(path) for name, path in (weights or {}).items()}
    digests = {
        name: {"path": str(path.resolve()), "sha256": weights_digest(name, path)}
        for name, path in files.items()
    }
    names = ("overrides", "source_options")
    started = {"profile": loaded.name} | {name: getattr(loaded, name) for name in names}
    _same_or_new(folder / "run.json", started)
    check_unchanged = getattr(source_of(loaded.source), "check_unchanged", None)
    if check_unchanged and (folder / "cohort" / "source.json").exists():
        check_unchanged(folder / "cohort")
    if digests:
        write_json(folder / "weights.json", digests)
    return Run(folder, loaded, device, {name: str(path) for name, path in files.items()})


def run_folder(run: str | int | None, profile: Profile) -> Path:
    """Folder of a run by its name, `runs/<run>`; an empty name means the profile's.

    Raises:
        PekaError: the name is not the plain name of one folder.
    """
    name = profile.name if run in ("", None) else str(run)
    if not re.fullmatch(r"\w[\w.+=@ -]{0,98}[\w+=@-]|\w", name):
        raise PekaError(
            f"run name {name!r} is not the name of a folder under runs/. Expected letters, digits, "
            "- _ . + = @, without / and without a dot at the start: --run NAME"
        )
    return folders.root() / "runs" / name


def _folder_for_this_code(folder: Path, source: str) -> Path:
    """The run's folder, or `<folder>-own` if the folder holds a published run of other code.

    A sentence is printed if other code made what is there. Units of different code never mix,
    because the digest of the code is part of a unit's name.
    """
    path, mark = folder / "cohort", folder / PUBLISHED
    other_cohort = claim_of(path).exists() and code_in(path) != code_of_source(source)
    # In a published run only its own units count, not those that readers added since.
    published = mark.read_text(encoding="utf-8").split() if mark.exists() else None
    commits = of_other_code(folder, published)
    if not commits and not other_cohort:
        return folder
    old = ", ".join(filter(None, commits)) or "its cohort"
    made = f"runs/{folder.name} contains results of other code ({old}) than this ({commit()})"
    if published is None:
        print(f"{made}. Results of other code are made again when they are needed.", flush=True)
        return folder
    own = folder.with_name(f"{folder.name}-own")
    print(f"{made}. It stays as it is, and your work goes into runs/{own.name}.", flush=True)
    return own


def _same_or_new(path: Path, started: dict) -> None:
    """Write the values with which a run starts; refuse a folder that started with other values."""
    text = json.dumps(started, sort_keys=True)
    if not path.exists():
        write_whole(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PekaError(
            f"{path}: damaged ({error}); expected the values with which this run was started. "
            f"Choose another --run NAME. If you know that these values were {text}, you can also "
            "delete this file. It is written again, and finished work stays."
        ) from error
    if before != json.loads(text):
        raise PekaError(
            f"{path.parent} was started with {json.dumps(before)}, not {text}; "
            "choose another --run NAME"
        )


@dataclasses.dataclass(eq=False)
class Run:
    """One profile and the folder of its results.

    Attributes:
        folder: `runs/<run>`.
        profile: the values of the run.
        device: the device on which its networks run.
        weights: local weight files by encoder.
        world: the cohort of the run that is used; only the demo has others than `OWN`.
        opened: cohorts, tiles, tasks and encoders in memory, by everything that they depend on. A
            copy of the run with other values (`dataclasses.replace`) shares them.
    """

    folder: Path
    profile: Profile
    device: str
    weights: dict
    world: World = OWN
    opened: dict = dataclasses.field(default_factory=dict, repr=False)

    def at(self, world: World) -> "Run":
        """The same run on another of its cohorts."""
        return dataclasses.replace(self, world=world)

    def describe(self) -> str:
        """Profile, folder, seed, device and versions in three lines, for the head of a notebook."""
        facts = provenance(self.device)
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        return (
            f"profile {self.profile.name}: {self.profile.title}; seed {self.profile.seed}\n"
            f"results in runs/{self.folder.name}, device {self.device}\n"
            f"peka_core {facts['peka_core']}, Python {facts['python']}, {packages}"
        )

    def cohort(self, tiles: bool = False) -> "Cohort":
        """Open the cohort; it is built if it is missing.

        Args:
            tiles: whether its tiles are needed; if they are missing, they are made again.
        """
        name = "cohort" if self.world == OWN else f"cohort_{self.world.name}"
        path = self.folder / name
        tiles = tiles and not self.world.same_tissue
        return self.once(
            ("cohort", path, self.world.options, tiles),
            lambda: build_cohort(
                path, self.profile.source, self._source_options, tiles, self.world.options
            ),
        )

    def _source_options(self) -> dict:
        """Options of the source, as its `build` names them, with those of the world."""
        given = self.profile.source_options
        options = {OWN_NAMES.get(name, name): value for name, value in given.items()}
        options |= dict(self.world.options)
        if self.world.same_tissue:
            options["counts_for"] = self.at(OWN).cohort().path
        return options

    def tiles(self):
        """Tiles of all spots, `(n, 224, 224, 3)`, read from their files when they are needed."""
        if self.world.same_tissue:
            return self.at(OWN).tiles()
        key = ("tiles", self.folder, self.world)
        return self.once(key, lambda: self.cohort(tiles=True).tiles())

    def tasks(self, protocol: "Protocol") -> list:
        """A protocol's splits with their target genes and values."""
        from ..tasks import make_tasks

        key = ("tasks", self.folder, self.world, protocol)
        return self.once(key, lambda: make_tasks(self.cohort(), protocol))

    def encoder(self, name: str = "") -> "Encoder":
        """The profile's encoder, or another by name, on this run's device."""
        from ..encoders import load_encoder

        name = name or self.profile.encoder
        weights, compile = self.weights.get(name), self.profile.compile
        return self.once(
            ("encoder", name, weights, self.device),
            lambda: load_encoder(name, weights, self.device, compile=compile),
        )

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What `make` returns, kept in memory under everything that it depends on."""
        if key not in self.opened:
            self.opened[key] = make()
        return self.opened[key]

    def encoder_name(self, name: str = "") -> str:
        """`name@digest` of an encoder, which is loaded only if its digest is not known otherwise.

        The digest has twelve digits for the weights and six for what the manifest says of network
        and input, because that can change while the weights stay the same.
        """
        from ..models.encoder_files import BUNDLED, manifest_entries

        name = name or self.profile.encoder
        digest = weights_digest(name, self.weights.get(name)) or self.encoder(name).digest
        found = None if name in BUNDLED else manifest_entries().get(name)
        parts = ("network", "layout", "transform", "pooling")
        entry = digest_of({part: getattr(found, part) for part in parts})[:6] if found else ""
        return f"{own_file.short(name)}@{digest[:12]}{entry}"

    def alignments(self) -> list:
        """(rung or method, split's name, world) of each alignment of the chapters, in order."""
        cues_off = self.profile.chapters.cues_off_splits
        off = [s.name for s in self.at(OFF).cohort().splits] if cues_off else []
        return self.profile.alignments([s.name for s in self.cohort().splits], off)

    def split(self, split: "Split | str") -> "Split":
        """A split by its name (`protocols.split_named`); a `Split` is returned as it is."""
        from ..cohort import Split
        from ..protocols import split_named

        return split if isinstance(split, Split) else split_named(self.cohort(), split)

    def rows(self, split: "Split | str") -> tuple[np.ndarray, np.ndarray]:
        """Boolean training and test rows `(n,)` of a split."""
        split = self.split(split)
        return split.train, split.test

    def unit(self, stage: str, **fields) -> Unit:
        """A unit of this run: what `stage` makes from `fields`, with the code that is here."""
        unit = Unit(stage=stage, cohort=self.cohort().digest, **fields)
        return dataclasses.replace(unit, code=code_of(unit))

    @property
    def teacher_name(self) -> str:
        """Name and options of the profile's teacher; a file is named by its digest."""
        from ..teachers import TEACHERS

        options = TEACHERS[self.profile.teacher].named_options(self.profile.teacher_options)
        return f"{self.profile.teacher}{json.dumps(options, sort_keys=True)}"
