"""A run: one profile at work in one folder. Every stage finds what is finished and makes what is not.

    work = open_run("demo")
    work.cohort()                       01  source -> cohort directory
    work.teacher("patients/0")          02  counts -> X_teacher, pseudo-labels
    work.align("bat", "patients/0")     03  encoder + teacher -> adapter, projector
    work.features("bat", "patients/0")  03  tiles -> features
    work.score("bat", protocol)         04  features -> predictions, scores
"""

import dataclasses
import functools
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from .cohort import Cohort, open_cohort
from .controls import CONTROLS, REFERENCES, oracle, permuted_targets
from .evaluation import Evaluation, evaluate
from .files import PekaError, write_whole
from .profile import Profile, load_profile
from .protocols import PROTOCOLS, Protocol, make_tasks
from .provenance import best_device, provenance
from .recipe import Recipe
from .tiles import KEEP_IN_MEMORY
from .units import Unit, make

if TYPE_CHECKING:  # torch and timm take seconds to import, and the first chapters do without
    from .encoders import Encoder
    from .student import Student


def root() -> Path:
    """The checkout that holds `notebooks/` and `runs/`: upwards from here, else around the package, else here."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parents[1]):
        if (folder / "data_manifest.yaml").exists():
            return folder
    return here


def open_run(
    profile: str = "demo", run: str = "", device: str = "auto", weights: dict | None = None, overrides: dict | None = None
) -> "Run":
    """Open `runs/<run>/` for a profile, creating it on first use.

    Args:
        profile: name of a bundled profile or path of a YAML file.
        run: folder under `runs/`; empty means the profile's name.
        device: `auto`, `cpu` or `cuda`.
        weights: local weights, `{"encoder name": "path"}`.
        overrides: profile values to change, by flat name.

    Raises:
        PekaError: unknown names, or a folder that was started with other values.
    """
    loaded = load_profile(profile, overrides)
    if loaded.overrides and not run:
        raise PekaError("changed parameters need a run name of their own: add --run NAME (in a notebook: run = \"NAME\")")
    folder = root() / "runs" / (run or loaded.name)
    started = {"profile": loaded.name, "overrides": loaded.overrides, "source_options": loaded.source_options}
    _same_or_new(folder / "run.json", started)
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
    """One profile at work in `folder`; see the module's first lines for its stages."""

    folder: Path
    profile: Profile
    device: str
    weights: dict

    def describe(self) -> str:
        """Profile, folder, seed, device and versions in three lines, for the head of a notebook."""
        facts = provenance()
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        return (
            f"profile {self.profile.name}: {self.profile.title}; seed {self.profile.seed}\n"
            f"results in runs/{self.folder.name}, device {self.device}\n"
            f"peka_core {facts['peka_core']}, Python {facts['python']}, {packages}"
        )

    # ---- 01 cohort -------------------------------------------------------------------------------

    @functools.cache
    def cohort(self, world: str = "on", tiles: bool = False) -> Cohort:
        """Open the cohort, building it where it is missing.

        Args:
            world: `on`; `off`, the demo's second world without hidden cues; `few`, its first patients alone.
            tiles: tiles are needed: draw or cut them again where the folder came without.
        """
        path = self.folder / ("cohort" if world == "on" else f"cohort_{world}")
        build = importlib.import_module(f"peka_core.sources.{self.profile.source}").build
        options = dict(self.profile.source_options)
        if "cohort_seed" in options:
            options["seed"] = options.pop("cohort_seed")
        if world == "few":
            options |= {"patients": self.profile.few["patients"], "folds": 2}
        if world == "off":
            options |= {"hidden": 0.0, "tiles_from": self.cohort().path, "tiles": False}  # same images, read from there
            tiles = False
        if not (path / "source.json").exists() or (tiles and not open_cohort(path).has_tiles):
            build(path, **options)
        return open_cohort(path)

    @functools.cache
    def tiles(self, world: str = "on"):
        """Tiles of all spots, `(n, 224, 224, 3)`, read once; the worlds `on` and `off` show the same images."""
        if world == "off":
            return self.tiles()
        reader = self.cohort(world, tiles=True).tiles()
        if np.prod(reader.shape) < KEEP_IN_MEMORY:
            reader[:]  # a full pass: from here on it is in memory
        return reader

    def recipe(self, world: str = "on") -> Recipe:
        """The profile's recipe; in world `few` with more epochs."""
        return dataclasses.replace(self.profile.recipe, epochs=self.profile.few["epochs"]) if world == "few" else self.profile.recipe

    # ---- 02 teacher ------------------------------------------------------------------------------

    def teacher(self, split: str, world: str = "on") -> ad.AnnData:
        """X_teacher and pseudo-labels of all spots, fitted on the training spots of `split`."""
        unit = self._unit("teacher", world, split=split, teacher=self._teacher_name, seed=self.profile.seed)

        def write(folder: Path) -> None:
            from .teachers import embed_spots, load_teacher

            cohort = self.cohort(world)
            teacher = load_teacher(self.profile.teacher, **self.profile.teacher_options)
            train, _ = self.rows(split, world)
            embedded = embed_spots(cohort.adata(), train, teacher, self.profile.recipe.k, self.profile.seed)
            embedded.write_h5ad(folder / "teacher.h5ad", compression="gzip")

        return ad.read_h5ad(make(self.folder, unit, write, "teacher.h5ad") / "teacher.h5ad")

    # ---- 03 alignment ----------------------------------------------------------------------------

    def align(self, method: str, split: str, world: str = "on", needs: str = "adapter.safetensors") -> Path:
        """Folder of the aligned student: adapter, projector, card, history.

        Args:
            needs: file that must be there; the committed demo run keeps every history but few weights, and
                those left out are trained again where they are needed.
        """
        unit = self._alignment_unit("alignment", method, split, world)

        def write(folder: Path) -> None:
            student, history = self.train(method, split, world)
            student.save(folder, extra={"split": split, "cohort": unit.cohort, "seed": unit.seed})
            history.to_csv(folder / "history.csv", index=False)

        return make(self.folder, unit, write, needs)

    def train(self, method: str, split: str, world: str = "on", recipe=None) -> tuple["Student", pd.DataFrame]:
        """One alignment in the open: the student and its history, nothing written."""
        from .alignment import align
        from .student import Student

        recipe = recipe or self.recipe(world)
        teacher = self.teacher(split, world)
        train, _ = self.rows(split, world)
        x_teacher, labels = teacher.obsm["X_teacher"], teacher.obs["pseudo_label"].to_numpy().astype(int)
        student = Student(self.encoder(), method, x_teacher.shape[1], recipe, seed=self.profile.seed)
        history = align(
            student, self.tiles(world), x_teacher, labels, self._groups(train, world), recipe,
            rows=np.flatnonzero(train), hold_out=split != "all" and world != "few", seed=self.profile.seed,
        )
        return student, history

    def history(self, method: str, split: str, world: str = "on") -> pd.DataFrame:
        """Loss history of a finished alignment, one row an epoch."""
        return pd.read_csv(self.align(method, split, world, "history.csv") / "history.csv")

    def features(self, method: str = "none", split: str = "", world: str = "on", encoder: str = "") -> ad.AnnData:
        """Features of all spots: `obsm["X_encoder"]`, and `obsm["X_projected"]` for an aligned student.

        Frozen features (`method="none"`) depend on neither split nor seed and exist once.
        """
        encoder = encoder or self.profile.encoder
        unit = self._alignment_unit("features", method, split, world, encoder)
        if method == "none":
            world = "on" if world == "off" else world  # the same images
            unit = self._unit("features", world, encoder=self._encoder_name(encoder), method="none")

        def write(folder: Path) -> None:
            from .student import Student, embed_tiles

            model = self.encoder(encoder)
            if method != "none":
                model = Student.load(self.align(method, split, world), model)
            if method == "projector_only":  # its encoder is the frozen one
                made = self._project(model, self.features(world=world, encoder=encoder).obsm["X_encoder"])
            else:
                made = embed_tiles(model, self.tiles(world))
            table = ad.AnnData(obs=self.cohort(world).obs, obsm={f"X_{space}": values for space, values in made.items()})
            table.write_h5ad(folder / "features.h5ad", compression="gzip")

        return ad.read_h5ad(make(self.folder, unit, write, "features.h5ad") / "features.h5ad")

    @staticmethod
    def _project(student: "Student", features: np.ndarray) -> dict[str, np.ndarray]:
        """Both spaces of a student without adapter, from frozen features (n, d)."""
        import torch

        with torch.no_grad():
            projected = student.project(torch.as_tensor(features, device=student.device)).cpu().numpy()
        return {"encoder": features, "projected": projected}

    def quality(self, method: str, split: str, space: str = "encoder", world: str = "on") -> dict:
        """Did it align? Held-out R2 and neighbour overlap of one student with X_teacher (`alignment_quality`)."""
        unit = dataclasses.replace(self._alignment_unit("quality", method, split, world), space=space)

        def write(folder: Path) -> None:
            from .alignment import alignment_quality

            train, test = self.rows(split, world)
            features = self.features(method, split, world).obsm[f"X_{space}"]
            x_teacher = self.teacher(split, world).obsm["X_teacher"]
            found = alignment_quality(features[train], x_teacher[train], features[test], x_teacher[test])
            (folder / "quality.json").write_text(json.dumps(found) + "\n")

        return json.loads((make(self.folder, unit, write, "quality.json") / "quality.json").read_text())

    def umap(self, method: str, split: str, space: str, labels_of: str) -> pd.DataFrame:
        """UMAP of all spots in one space: x, y, pseudo_label (teacher of split `labels_of`), patient. scanpy, seed 0."""
        unit = dataclasses.replace(self._alignment_unit("umap", method, split, "on"), space=space, scope=labels_of)

        def write(folder: Path) -> None:
            import scanpy as sc

            table = self.features(method, split)
            sc.pp.neighbors(table, use_rep=f"X_{space}", random_state=0)
            sc.tl.umap(table, random_state=0)
            points = pd.DataFrame(table.obsm["X_umap"], index=table.obs_names, columns=["x", "y"]).round(3)
            points = points.assign(pseudo_label=self.teacher(labels_of).obs["pseudo_label"], patient=table.obs["patient"])
            points.to_csv(folder / "umap.csv", index_label="spot")

        path = make(self.folder, unit, write, "umap.csv") / "umap.csv"
        return pd.read_csv(path, index_col="spot", dtype={"patient": str, "pseudo_label": str})

    # ---- 04 evaluation ---------------------------------------------------------------------------

    def score(
        self, predictor: str, protocol: Protocol, space: str = "encoder", scope: str = "", split: str = "",
        world: str = "on", predictions: bool = False,
    ) -> Evaluation:
        """Score one predictor under one protocol; finished scores are read, not made again.

        Args:
            predictor: `frozen`, `random`, a method of the profile, `oracle`, `permuted_targets`, or a name in
                `controls.CONTROLS` or `controls.REFERENCES`.
            space: `encoder`, `projected` or `concat` (frozen beside projected), for aligned students.
            scope: `nested` (aligned on each split's training spots), `all` (aligned once on all spots); by
                default the protocol's own.
            split: score these splits alone (names, with commas); empty means all splits of the protocol.
            predictions: the predicted values are needed, not the scores alone.
        """
        scope = scope or protocol.scope
        unit = self._unit(
            "evaluation", world, encoder=self._encoder_name(self._encoder_of(predictor)), method=predictor,
            teacher=self._teacher_name, recipe=self.recipe(world), split=split, space=space,
            protocol=protocol.name, zeros=protocol.zeros, scope=scope, seed=self.profile.seed,
        )

        def write(folder: Path) -> None:
            tasks = [task for task in self.tasks(protocol, world) if not split or task.split.name in split.split(",")]
            features = self._predictor(predictor, tasks, space, scope, world)
            evaluate(self.cohort(world), features, protocol, tasks).save(folder)

        return Evaluation.load(make(self.folder, unit, write, "predictions.h5ad" if predictions else "scores.csv"))

    @functools.cache
    def tasks(self, protocol: Protocol, world: str = "on") -> list:
        """Splits with their target genes and values, made once a protocol."""
        return make_tasks(self.cohort(world), protocol)

    def _predictor(self, name: str, tasks: list, space: str, scope: str, world: str):
        """Features, or a callable, that `evaluate` takes for the named predictor."""
        cohort = self.cohort(world)
        if name == "oracle":
            return oracle(cohort)
        if name == "permuted_targets":
            return permuted_targets(self.features(world=world).obsm["X_encoder"], seed=self.profile.seed)
        if name in CONTROLS or name in REFERENCES:
            return (CONTROLS | REFERENCES)[name](self.cohort(world, tiles=name == "colour"))
        if name in ("frozen", "random"):
            return self.features(world=world, encoder=self._encoder_of(name)).obsm["X_encoder"]
        splits = {task.split.name: "all" if scope == "all" else task.split.name for task in tasks}
        return {split: self._student_features(name, seen, space, world) for split, seen in splits.items()}

    def _student_features(self, method: str, split: str, space: str, world: str) -> np.ndarray:
        """(n, d) features of an aligned student in one of its three spaces."""
        made = self.features(method, split, world).obsm
        if space == "concat":
            return np.concatenate([self.features(world=world).obsm["X_encoder"], made["X_projected"]], axis=1)  # (n, d + d_t)
        return made[f"X_{space}"]

    # ---- what units are made of ------------------------------------------------------------------

    @functools.cache
    def encoder(self, name: str = "") -> "Encoder":
        """The profile's encoder, or another by name, on this run's device."""
        from .encoders import load_encoder

        name = name or self.profile.encoder
        return load_encoder(name, weights=self.weights.get(name), device=self.device)

    def rows(self, split: str, world: str = "on") -> tuple[np.ndarray, np.ndarray]:
        """Boolean training and test rows of a split by name; `all` trains on every spot and tests none."""
        cohort = self.cohort(world)
        if split == "all":
            return np.ones(len(cohort.obs), bool), np.zeros(len(cohort.obs), bool)
        for protocol in PROTOCOLS.values():
            for known in protocol.splits(cohort):
                if known.name == split:
                    return known.train, known.test
        raise PekaError(f"{cohort.path}: no split {split!r}; this cohort has {[s.name for s in cohort.splits]}")

    def _groups(self, train: np.ndarray, world: str) -> np.ndarray:
        """Patients of all spots; sections where the training spots come from one patient."""
        obs = self.cohort(world).obs
        column = "group" if obs.loc[train, "group"].nunique() > 1 else "sample"
        return obs[column].astype(str).to_numpy()

    def _alignment_unit(self, stage: str, method: str, split: str, world: str, encoder: str = "") -> Unit:
        return self._unit(
            stage, world, encoder=self._encoder_name(encoder or self.profile.encoder), method=method, split=split,
            teacher=self._teacher_name, recipe=self.recipe(world), seed=self.profile.seed,
        )

    def _unit(self, stage: str, world: str, **fields) -> Unit:
        return Unit(stage=stage, cohort=self.cohort(world).digest, **fields)

    def _encoder_of(self, predictor: str) -> str:
        return "random" if predictor == "random" else self.profile.encoder

    @functools.cache
    def _encoder_name(self, name: str) -> str:
        return f"{name}@{self.encoder(name).digest[:12]}"

    @property
    def _teacher_name(self) -> str:
        return f"{self.profile.teacher}{json.dumps(self.profile.teacher_options, sort_keys=True)}"
