"""A run: one profile at work in one folder, and the things that all of its stages share (see stages.py).

    work = open_run("demo")
    work.cohort()              the cohort directory, built where it is missing
    work.tiles()               tiles of all spots
    work.rows("patients/0")    training and test rows of a split
    work.encoder()             the profile's encoder, on this run's device
"""

import dataclasses
import functools
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .files import PekaError, alone, write_json, write_whole
from .ladder import Rung
from .profile import Profile, load_profile
from .provenance import best_device, provenance, weights_digest
from .recipe import Recipe
from .units import Unit

if TYPE_CHECKING:  # these take seconds to import, and not every chapter or command needs them
    from .cohort import Cohort
    from .encoders import Encoder
    from .protocols import Protocol


CHECKOUT = "data_manifest.yaml"  # the file by which a checkout is known
PACKAGE = Path(__file__).parent


def root() -> Path:
    """The folder that holds `runs/`: the checkout, upwards from here or around the package; without one the working directory.

    A notebook that is opened in the folder of a run (`runs/<run>/notebooks`) finds the folder around that `runs/`.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / CHECKOUT).exists() and folder != PACKAGE / "bundled":
            return folder
    return next((f.parents[1] for f in (here, *here.parents) if f.parent.name == "runs" and (f / "run.json").exists()), here)


def bundled(name: str) -> Path:
    """What comes with the code: `notebooks`, `results`, `data_manifest.yaml`, `constraints.txt`.

    The checkout's where there is one, else the copy that `pip install .` puts into the package (pyproject.toml, package-dir).
    """
    copy, folder = PACKAGE / "bundled" / name, root()
    if copy.exists() and not (folder / CHECKOUT).exists():
        return copy
    return folder / name if (folder / name).exists() else PACKAGE.parent / name


def results_folder() -> Path:
    """The published tables, which README and chapters read; a run's own lie in `runs/<run>/results`."""
    return bundled("results")


def open_run(
    profile: str = "demo", run: str = "", device: str = "auto", weights: dict | None = None, overrides: dict | None = None
) -> "Run":
    """Open `runs/<run>/` for a profile, creating it on first use.

    Args:
        profile: name of a bundled profile or path of a YAML file.
        run: folder under `runs/`; empty means the profile's name.
        device: `auto`, `cpu` or `cuda`.
        weights: local weights, `{"encoder name": "path"}`; their digests are printed and kept in the run's weights.json.
        overrides: profile values to change, by flat name.

    Raises:
        PekaError: unknown names, weights that are not there, or a folder that was started with other values.
    """
    loaded = load_profile(profile, overrides)
    if loaded.overrides and not run:
        raise PekaError("changed parameters need a run name of their own: add --run NAME (in a notebook: run = \"NAME\")")
    folder = root() / "runs" / (run or loaded.name)
    started = {"profile": loaded.name, "overrides": loaded.overrides, "source_options": loaded.source_options}
    files = {name: Path(path) for name, path in (weights or {}).items()}
    given = {name: {"path": str(path.resolve()), "sha256": weights_digest(name, path)} for name, path in files.items()}
    _same_or_new(folder / "run.json", started)
    if given:
        write_json(folder / "weights.json", given)
    return Run(folder, loaded, best_device() if device == "auto" else device, dict(weights or {}))


def _same_or_new(path: Path, started: dict) -> None:
    """Write what a run folder was started with, or refuse a folder that was started with something else."""
    text = json.dumps(started, sort_keys=True)
    if not path.exists():
        write_whole(path, lambda p: p.write_text(text + "\n"))
    elif json.loads(path.read_text()) != json.loads(text):
        raise PekaError(f"{path.parent} was started with {path.read_text().strip()}, not {text}; choose another --run NAME")


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
        from .cohort import open_cohort

        path = self.folder / ("cohort" if world == "on" else f"cohort_{world.replace('=', '_')}")
        tiles = tiles and not self.same_tissue(world)  # its tiles are read from the first world
        ready = lambda: (path / "source.json").exists() and (not tiles or open_cohort(path).has_tiles)
        if not ready():
            options = self._source_options(world)
            with alone(path):
                if not ready():
                    importlib.import_module(f"peka_core.sources.{self.profile.source}").build(path, **options)
        return open_cohort(path)

    def _source_options(self, world: str) -> dict:
        own = {"cohort_seed": "seed", "hidden_cues": "hidden"}  # a profile has other things of these names
        options = {own.get(name, name): value for name, value in self.profile.source_options.items()}
        if world == "few":
            options |= {"patients": self.profile.few["patients"], "folds": 2}
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
        from .tiles import KEEP_IN_MEMORY

        if self.same_tissue(world):
            return self.tiles()
        reader = self.cohort(world, tiles=True).tiles()
        if np.prod(reader.shape) < KEEP_IN_MEMORY:
            reader[:]  # a full pass: from here on it is in memory
        return reader

    @functools.cache
    def tasks(self, protocol: "Protocol", world: str = "on") -> list:
        """A protocol's splits with their target genes and values, made once."""
        from .protocols import make_tasks

        return make_tasks(self.cohort(world), protocol)

    @functools.cache
    def encoder(self, name: str = "") -> "Encoder":
        """The profile's encoder, or another by name, on this run's device."""
        from .encoders import load_encoder

        name = name or self.profile.encoder
        return load_encoder(name, weights=self.weights.get(name), device=self.device)

    @functools.cache
    def encoder_name(self, name: str = "") -> str:
        """`name@digest`; the encoder is loaded only where its digest cannot be known otherwise."""
        name = name or self.profile.encoder
        digest = weights_digest(name, self.weights.get(name)) or self.encoder(name).digest
        return f"{name}@{digest[:12]}"

    def recipe(self, rung: Rung, split: str = "", world: str = "on") -> Recipe:
        """The profile's recipe with the changes of a rung.

        What is set aside follows the split (`Recipe.for_split`); in world `few`, which has more epochs, nothing is.
        """
        recipe = rung.change(self.profile.recipe)
        if world == "few":
            return dataclasses.replace(recipe, epochs=self.profile.few["epochs"], set_aside=0.0)
        return recipe.for_split(split)

    def rows(self, split: str, world: str = "on", share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Boolean training and test rows of a split by name; `all` trains on every spot and tests none.

        Args:
            share: keep this share of the training patients (sections where there is one patient), drawn with the
                profile's seed; a smaller share is part of every larger one.
        """
        train, test = self._rows(split, world)
        if share == 1.0:
            return train, test
        groups = self.groups(train, world)
        names = np.random.default_rng(self.profile.seed).permutation(np.unique(groups[train]))
        return train & np.isin(groups, names[: max(1, round(share * len(names)))]), test

    def _rows(self, split: str, world: str) -> tuple[np.ndarray, np.ndarray]:
        from .protocols import protocol_of

        cohort = self.cohort(world)
        if split == "all":
            return np.ones(len(cohort.obs), bool), np.zeros(len(cohort.obs), bool)
        for known in protocol_of(split).splits(cohort):
            if known.name == split:
                return known.train, known.test
        raise PekaError(f"{cohort.path}: no split {split!r}; this cohort has {[s.name for s in cohort.splits]}")

    def groups(self, train: np.ndarray, world: str) -> np.ndarray:
        """What an alignment sets aside whole: patients of all spots, or sections where the training spots come from one patient."""
        obs = self.cohort(world).obs
        column = "group" if obs.loc[train, "group"].nunique() > 1 else "sample"
        return obs[column].astype(str).to_numpy()

    def unit(self, stage: str, world: str, **fields) -> Unit:
        """A unit of this run: what `stage` makes in `world` from `fields`."""
        return Unit(stage=stage, cohort=self.cohort(world).digest, **fields)

    @property
    def teacher_name(self) -> str:
        """Name and options of the profile's teacher, with digests where options are files."""
        options = self.profile.teacher_options
        if self.profile.teacher == "scfoundation":
            from .scfoundation import named_options

            options = named_options(options)
        return f"{self.profile.teacher}{json.dumps(options, sort_keys=True)}"


def _hidden(world: str) -> float:
    """Share of the cue genes' law that stays hidden from the frozen encoder: `off` is 0, `hidden=0.25` a quarter."""
    return 0.0 if world == "off" else float(world.partition("=")[2])
