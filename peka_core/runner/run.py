"""A run: one profile at work in one folder, and the things that all of its stages share (see stages.py).

work = open_run("demo")
work.cohort()              the cohort directory, built where it is missing
work.tiles()               tiles of all spots
work.rows("patients/0")    training and test rows of a split
work.encoder()             the profile's encoder, on this run's device
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import places
from ..device import check_device
from ..errors import PekaError
from ..files import alone, write_json, write_whole
from ..models.encoder_files import weights_digest
from ..recipe import Recipe
from ..targets import some_patients, validation_groups
from ..values import absolute
from .code import code_of, code_of_source
from .profile import Profile, load_profile
from .profile_checks import OWN_NAMES, check_complete, source_of
from .provenance import commit, provenance
from .rungs import Rung
from .units import Unit, digest_of, of_other_code

PUBLISHED = "published.txt"  # marks a run that came with the repository and names its units (scripts/publish.py)
BUILT = (
    "source.json",
    "building.json",
    "unfinished.json",
)  # a cohort that a source builds has one of these

if TYPE_CHECKING:  # these take seconds to import, and not every chapter or command needs them
    from ..cohort import Cohort, Split
    from ..encoders import Encoder
    from ..protocols import Protocol


def open_run(
    profile: str = "demo",
    run: str = "",
    device: str = "auto",
    weights: dict | None = None,
    overrides: dict | None = None,
) -> "Run":
    """Open `runs/<run>/` for a profile, creating it on first use.

    Args:
        profile: name of a bundled profile or path of a YAML file.
        run: name of the folder under `runs/`; empty means the profile's name.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        weights: local weights, `{"encoder name": "path"}`; their digests are printed and kept in the run's weights.json.
        overrides: profile values to change, by flat name.

    Raises:
        PekaError: unknown names, values that do not fit, a device or weights that are not there, or a folder that was started with
            other values or for a cohort directory that has changed.
    """
    loaded, device = load_profile(profile, overrides), check_device(device)
    check_complete(loaded)
    if loaded.overrides and run in ("", None):
        raise PekaError(
            'changed parameters need a run name of their own: add --run NAME (in a notebook: run = "NAME")'
        )
    folder = _for_this_code(run_folder(run, loaded), loaded.source)
    started = {
        "profile": loaded.name,
        "overrides": loaded.overrides,
        "source_options": loaded.source_options,
    }
    if not isinstance(weights or {}, Mapping):
        raise PekaError(f'weights must be a mapping such as {{"mini": "path"}}, not {weights!r}')
    files = {name: absolute(path) for name, path in (weights or {}).items()}
    given = {
        name: {"path": str(path.resolve()), "sha256": weights_digest(name, path)}
        for name, path in files.items()
    }
    _same_or_new(folder / "run.json", started)
    unchanged = getattr(source_of(loaded.source), "check_unchanged", None)
    if unchanged and (folder / "cohort" / "source.json").exists():
        unchanged(folder / "cohort")
    if given:
        write_json(folder / "weights.json", given)
    return Run(folder, loaded, device, {name: str(path) for name, path in files.items()})


def run_folder(run: str | int | None, profile: Profile) -> Path:
    """Folder of a run by its name, `runs/<run>`; an empty name is the profile's.

    Raises:
        PekaError: a name that is not the plain name of one folder.
    """
    name = profile.name if run in ("", None) else str(run)
    if not re.fullmatch(r"\w[\w.+=@ -]{0,98}[\w+=@-]|\w", name):
        raise PekaError(
            f"run name {name!r}: expected the name of one folder under runs/: letters, digits, - _ . + = @, no / and no dot first; --run NAME"
        )
    return places.root() / "runs" / name


def _for_this_code(folder: Path, source: str) -> Path:
    """The folder itself; or, where it holds a published run that other code made, a folder of the reader's own beside it.

    What was made by other code is told in one sentence. Units never mix: their names hold the code's digest.
    """
    claim, mark = _claim(folder / "cohort"), folder / PUBLISHED
    other_cohort = claim.exists() and _code_in(claim) != code_of_source(source)
    published = (
        mark.read_text(encoding="utf-8").split() if mark.exists() else None
    )  # what readers made there since does not count
    if not (commits := of_other_code(folder, published)) and not other_cohort:
        return folder
    made = f"runs/{folder.name} was made, in part or whole, by other code ({', '.join(filter(None, commits)) or 'its cohort'}) than this"
    here = f" ({commit()})" if commit() else ""
    if published is None:
        print(f"{made}{here}: what differs is made again when it is asked for", flush=True)
        return folder
    print(
        f"{made}{here}: it stays as it is, and this goes on in runs/{folder.name}-own", flush=True
    )
    return folder.with_name(f"{folder.name}-own")


def has_cohort(folder: Path, source: str) -> bool:
    """Whether a run has its finished cohort already, built by this code."""
    return (folder / "cohort/source.json").exists() and _code_in(
        _claim(folder / "cohort")
    ) == code_of_source(source)


def _claim(cohort: Path) -> Path:
    """The file beside a cohort's folder that says which code built it."""
    return cohort.with_name(f"{cohort.name}.json")


def _code_in(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _same_or_new(path: Path, started: dict) -> None:
    """Write what a run folder was started with, or refuse a folder that was started with something else."""
    text = json.dumps(started, sort_keys=True)
    if not path.exists():
        write_whole(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PekaError(
            f"{path}: damaged ({error}); expected what this run was started with. Choose another --run NAME; or, where you know that it "
            f"was started with {text}, delete this one file: it is written again, and what is finished stays"
        ) from error
    if before != json.loads(text):
        raise PekaError(
            f"{path.parent} was started with {json.dumps(before)}, not {text}; choose another --run NAME"
        )


@dataclasses.dataclass(eq=False)
class Run:
    """One profile at work in `folder`.

    A *world* is a cohort of this run: `on`, the profile's own; on the demo also `off` (the same tissue, its counts
    without hidden cues), `hidden=0.25` (the same tissue, a quarter of the cues hidden) and `few` (other, fewer patients).
    """

    folder: Path
    profile: Profile
    device: str
    weights: dict

    def describe(self) -> str:
        """Profile, folder, seed, device and versions in three lines, for the head of a notebook."""
        facts = provenance(self.device)
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        return (
            f"profile {self.profile.name}: {self.profile.title}; seed {self.profile.seed}\n"
            f"results in runs/{self.folder.name}, device {self.device}\n"
            f"peka_core {facts['peka_core']}, Python {facts['python']}, {packages}"
        )

    @functools.cache
    def cohort(self, world: str = "on", tiles: bool = False) -> "Cohort":
        """Open a world's cohort, building it where it is missing.

        Args:
            tiles: tiles are needed: draw or cut them again where the folder came without.
        """
        from ..cohort import open_cohort

        path = self.folder / ("cohort" if world == "on" else f"cohort_{world.replace('=', '_')}")
        tiles = tiles and not self.same_tissue(world)  # its tiles are read from the first world
        here = code_of_source(self.profile.source)
        ready = lambda: (
            _code_in(_claim(path)) == here
            and (path / "source.json").exists()
            and (not tiles or open_cohort(path).has_tiles)
        )
        if not ready():
            options = self._source_options(world)
            with alone(path):
                if not ready():
                    with self._claimed(path, here):
                        source_of(self.profile.source).build(path, **options)
        return open_cohort(path)

    @contextlib.contextmanager
    def _claimed(self, path: Path, here: str):
        """Claim a cohort's folder for this code while it is built; what other code built there gives way once the new one is whole.

        Raises:
            PekaError: the folder holds something that no source of this package built.
        """
        claim, before = _claim(path), path.with_name(f"{path.name}.before")
        old = claim.read_text(encoding="utf-8") if claim.exists() else ""
        moved = path.exists() and _code_in(claim) != here
        if moved:
            if not any((path / name).exists() for name in BUILT):
                raise PekaError(
                    f"{path}: holds files that no source of this package built; expected the run's own cohort, or nothing. Move them "
                    "elsewhere (for a cohort of your own: peka run own --cohort DIR), or choose another --run NAME."
                )
            print(
                f"runs/{self.folder.name}/{path.name} was built by other code: it is built again",
                flush=True,
            )
            shutil.rmtree(before, ignore_errors=True)
            os.replace(path, before)
        if _code_in(claim) != here:
            write_json(claim, {"code": here, "commit": commit()})
        try:
            yield
        except Exception:  # what was there comes back, with what it says of itself; after Ctrl-C the new one goes on
            if moved and not (path / "source.json").exists():
                shutil.rmtree(path, ignore_errors=True)
                os.replace(before, path)
                write_whole(
                    claim, lambda file: file.write_text(old, encoding="utf-8")
                ) if old else claim.unlink()
            raise
        shutil.rmtree(before, ignore_errors=True)

    def _source_options(self, world: str) -> dict:
        options = {
            OWN_NAMES.get(name, name): value for name, value in self.profile.source_options.items()
        }
        if world == "few":
            options |= {"patients": self.profile.chapters.few["patients"], "folds": 2}
        if self.same_tissue(world):
            options |= {"hidden": _hidden(world), "counts_for": self.cohort().path}
        return options

    @staticmethod
    def same_tissue(world: str) -> bool:
        """Whether a world shows the very tiles of the run's own cohort, and differs in its counts alone."""
        return world == "off" or world.startswith("hidden=")

    @functools.cache
    def tiles(self, world: str = "on"):
        """Tiles of all spots, `(n, 224, 224, 3)`, read once."""
        from ..tiles import KEEP_IN_MEMORY

        if self.same_tissue(world):
            return self.tiles()
        reader = self.cohort(world, tiles=True).tiles()
        if np.prod(reader.shape) < KEEP_IN_MEMORY:
            reader[:]  # a full pass: from here on it is in memory
        return reader

    @functools.cache
    def tasks(self, protocol: "Protocol", world: str = "on") -> list:
        """A protocol's splits with their target genes and values, made once."""
        from ..protocols import make_tasks

        return make_tasks(self.cohort(world), protocol)

    @functools.cache
    def encoder(self, name: str = "") -> "Encoder":
        """The profile's encoder, or another by name, on this run's device."""
        from ..encoders import load_encoder

        name = name or self.profile.encoder
        return load_encoder(name, weights=self.weights.get(name), device=self.device)

    @functools.cache
    def encoder_name(self, name: str = "") -> str:
        """`name@digest`; the encoder is loaded only where its digest cannot be known otherwise."""
        name = name or self.profile.encoder
        digest = weights_digest(name, self.weights.get(name)) or self.encoder(name).digest
        from ..models.encoder_files import BUNDLED, rows

        row = None if name in BUNDLED else rows().get(name)
        how = (
            digest_of(
                {part: getattr(row, part) for part in ("network", "layout", "transform", "pooling")}
            )[:6]
            if row
            else ""
        )
        return f"{name}@{digest[:12]}{how}"  # what a row says of the network and its input can change while the weights stay

    def recipe(self, rung: Rung, split: "Split | None" = None, world: str = "on") -> Recipe:
        """The profile's recipe with the changes of a rung.

        What is set aside follows the split (`Recipe.for_split`); in world `few`, which has more epochs, nothing is.
        """
        recipe = rung.change(self.profile.recipe)
        if world == "few":
            return dataclasses.replace(recipe, epochs=self.profile.chapters.few["epochs"], set_aside=0.0)
        return recipe.for_split(
            split is not None and split.mixes(self.cohort(world).obs["sample"].to_numpy())
        )

    def split(self, split: "Split | str", world: str = "on") -> "Split":
        """A split by name: `spots/i` as `peka_paper` shuffles them, `all`, which trains on every spot and tests none, or one of the
        cohort's own, without copied sections. A `Split` is returned as it is.

        Raises:
            PekaError: the cohort has no such split.
        """
        from ..cohort import Split
        from ..protocols import protocol_of

        if isinstance(split, Split):
            return split
        cohort = self.cohort(world)
        if split == "all":
            return Split("all", np.ones(len(cohort.obs), bool), np.zeros(len(cohort.obs), bool))
        for known in protocol_of(split).splits(cohort):
            if known.name == split:
                return known
        raise PekaError(
            f"{cohort.path}: no split {split!r}; this cohort has {[s.name for s in cohort.splits]}"
        )

    def rows(
        self, split: "Split | str", world: str = "on", share: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boolean training and test rows of a split; `all` trains on every spot and tests none.

        Args:
            split: a `Split`, or the name of one (`split`).
            share: keep this share of the training patients (sections where there is one patient), drawn with the
                profile's seed; a smaller share is part of every larger one.
        """
        split = self.split(split, world)
        return some_patients(
            self.groups(split.train, world), split.train, share, self.profile.seed
        ), split.test

    def groups(self, train: np.ndarray, world: str) -> np.ndarray:
        """What an alignment sets aside whole: patients of all spots, or sections where the training spots come from one patient."""
        return validation_groups(self.cohort(world).obs, train)

    def unit(self, stage: str, world: str, **fields) -> Unit:
        """A unit of this run: what `stage` makes in `world` from `fields`, with the code that is here."""
        unit = Unit(stage=stage, cohort=self.cohort(world).digest, **fields)
        return dataclasses.replace(unit, code=code_of(unit))

    @property
    def teacher_name(self) -> str:
        """Name and options of the profile's teacher, with digests where options are files."""
        options = self.profile.teacher_options
        if self.profile.teacher == "scfoundation":
            from ..models.scfoundation import named_options

            options = named_options(options)
        return f"{self.profile.teacher}{json.dumps(options, sort_keys=True)}"


def _hidden(world: str) -> float:
    """Share of the cue genes' law that stays hidden from the frozen encoder: `off` is 0, `hidden=0.25` a quarter."""
    return 0.0 if world == "off" else float(world.partition("=")[2])
