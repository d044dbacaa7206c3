"""The stages of a run. A stage returns its finished unit, or calls the core and stores the result.

    work = open_run("demo")
    stages.teacher(work, "patients/0")           02  counts -> X_teacher, pseudo-labels
    stages.align(work, "bat", "patients/0")      03  encoder + teacher -> adapter, projector
    stages.features(work, "bat", "patients/0")   03  tiles -> features
    stages.score(work, "bat", protocol)          04  features -> predictions, scores

A rung (what is trained or scored) is a `Rung` or the name of a method. A split is a `Split` or its
name. The code of this file and of inputs.py is part of every unit's name, because both choose what
a function is given.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from .. import targets
from ..cohort import Split
from ..common.files import sha256_of_rows, write_json
from ..controls import CONTROLS, REFERENCES, permuted_targets
from ..drawn.oracle import oracle
from ..drawn.worlds import OWN
from ..evaluation import Evaluation, evaluate
from ..protocols import Protocol, Scope, protocol_with_split
from ..recipe import Recipe
from ..tasks import targets_of_split
from . import inputs
from .inputs import recipe_of, seen_by, student_unit
from .provenance import maker
from .run import Run
from .rungs import Rung, as_rung
from .units import Unit, digest_of, facts_of, make, partial, told_of_damage

if TYPE_CHECKING:  # torch and timm take seconds to import, and only new students need them
    from ..student import Student


TABLES_KEPT = 3  # features or teachers in memory: the frozen ones, and those of one or two splits


def teacher(work: Run, split: Split | str, rung: Rung | str = "bat") -> ad.AnnData:
    """X_teacher and pseudo-labels of all spots, fitted on the training spots of `split`.

    Args:
        rung: its share of training patients, and its recipe's k and labels.
    """
    rung, split = as_rung(rung), work.split(split)
    recipe, seen, seed = recipe_of(work, rung), seen_by(work, rung, split), work.profile.seed
    needed = Recipe(k=recipe.k, labels=recipe.labels)
    fields = {"recipe": needed, "split": split.name, "rows": sha256_of_rows(seen), "seed": seed}
    unit = work.unit("teacher", teacher=work.teacher_name, **fields)

    def write(folder: Path) -> None:
        from ..teachers import PrecomputedTeacher, embed_spots, load_teacher

        model = load_teacher(work.profile.teacher, **work.profile.teacher_options)
        adata = work.cohort().adata(join=model.gene_join)
        if not model.needs_fit:  # it is the same for all splits and seeds, so it is embedded once
            unit_of_all = work.unit("embedding", teacher=work.teacher_name)
            x_teacher = _array(work, unit_of_all, functools.partial(model.embed, adata))
            model = PrecomputedTeacher(model, x_teacher)
        embedded = embed_spots(adata, seen, model, recipe.k, seed, recipe.labels)
        embedded.write_h5ad(folder / "teacher.h5ad", compression="gzip")

    return _read(_file(work, unit, "teacher.h5ad", write))


def targets_and_labels(
    work: Run, rung: Rung | str, split: Split | str
) -> tuple[np.ndarray, np.ndarray]:
    """Targets `(n, d_t)` and pseudo-labels `(n,)` of all spots for a rung's student."""
    rung, split = as_rung(rung), work.split(split)
    genes = None
    if rung.taught_by == "genes":
        genes = targets_of_split(work.tasks(protocol_with_split(split.name)), split)
    return targets.targets_and_labels(
        teacher(work, split, rung), rung.taught_by, work.profile.seed, genes
    )


def hashes(work: Run) -> np.ndarray:
    """Perceptual hashes of all tiles, `(n,)` uint64 (`duplicates.difference_hash`)."""
    from ..layout.duplicates import difference_hash

    return _array(work, work.unit("hashes"), lambda: difference_hash(work.tiles()))


def align(
    work: Run, rung: Rung | str, split: Split | str, needs: str = "adapter.safetensors"
) -> Path:
    """Folder of the aligned student: adapter, projector, card, history.

    Args:
        split: the student may see its training spots; `all` for every spot.
        needs: the file that must be there. The committed demo run keeps every history and few
            weights. The student is trained again if weights are needed that are not there.
    """
    rung, split = as_rung(rung), work.split(split)
    unit = student_unit(work, "alignment", rung, split)
    card = {name: getattr(unit, name) for name in ("split", "rows", "cohort", "seed")}

    def write(folder: Path) -> None:
        checkpoint = partial(work.folder, unit) / "progress.pt"
        student, losses = train(work, rung, split, checkpoint)
        student.save(folder, extra=card)
        losses.to_csv(folder / "history.csv", index=False)

    return make(work.folder, unit, write, needs, work.device)


def train(
    work: Run, rung: Rung | str, split: Split | str, checkpoint: Path | None = None, **changes
) -> tuple["Student", pd.DataFrame]:
    """Train a student and return it with its history; nothing is stored.

    Args:
        checkpoint: file for the state after each epoch, from which a killed training continues.
        changes: changed values of the recipe by name (`epochs=2`).
    """
    from ..alignment import align as run_alignment
    from ..student import Student
    from ..training_data import TrainingData

    rung, split = as_rung(rung), work.split(split)
    recipe = dataclasses.replace(recipe_of(work, rung, split), **changes)
    x, labels = targets_and_labels(work, rung, split)
    seen, seed = seen_by(work, rung, split), work.profile.seed
    student = Student(work.encoder(rung.encoder), rung.method, x.shape[1], recipe, seed=seed)
    groups = targets.validation_groups(work.cohort().obs, seen)
    data = TrainingData(work.tiles(), x, labels, groups, rows=seen & (labels >= 0))
    return student, run_alignment(student, data, recipe, seed, checkpoint)


def history(work: Run, rung: Rung | str, split: Split | str) -> pd.DataFrame:
    """Loss history of a finished alignment, one row an epoch."""
    return pd.read_csv(align(work, rung, split, "history.csv") / "history.csv")


def features(work: Run, rung: Rung | str = "frozen", split: Split | str = "") -> ad.AnnData:
    """Features of all spots: `obsm["X_encoder"]`, and `obsm["X_projected"]` for an aligned student.

    Frozen features do not depend on split or seed. Worlds with the same tissue share them.
    """
    rung = as_rung(rung)
    is_frozen = rung.method == "none"
    work = work.at(OWN) if is_frozen and work.world.same_tissue else work
    seen = None if is_frozen else work.split(split)

    def write(folder: Path) -> None:
        from ..student import Student, embed_tiles, project_features

        student, table = work.encoder(rung.encoder), ad.AnnData(obs=work.cohort().obs)
        if seen is not None:
            student = Student.load(align(work, rung, seen), student)
        if seen is not None and student.keeps_features:
            frozen = _frozen(work, rung)
            spaces = {"encoder": frozen, "projected": project_features(student, frozen)}
        else:
            spaces = embed_tiles(student, work.tiles())
        for space, values in spaces.items():
            table.obsm[f"X_{space}"] = values
        table.write_h5ad(folder / "features.h5ad", compression="gzip")

    unit = student_unit(work, "features", rung, seen)
    return _read(_file(work, unit, "features.h5ad", write))


def _frozen(work: Run, rung: Rung) -> np.ndarray:
    """Features (n, d) of the frozen encoder of a rung."""
    return features(work, Rung("none", encoder=rung.encoder)).obsm["X_encoder"]


def space_of(work: Run, rung: Rung | str, split: Split | str = "") -> np.ndarray:
    """Features (n, d) of all spots in a rung's space."""
    rung = as_rung(rung)
    spaces = features(work, rung, split).obsm
    if rung.space == "concat":
        return np.concatenate([_frozen(work, rung), spaces["X_projected"]], axis=1)  # (n, d + d_t)
    return spaces[f"X_{rung.space}"]


def quality(work: Run, rung: Rung | str, split: Split | str) -> dict:
    """`alignment_quality` of a rung's space on held-out spots, and what made it."""
    rung, split = as_rung(rung), work.split(split)
    rows = sha256_of_rows(seen_by(work, rung, split), split.train, split.test)
    unit = student_unit(work, "quality", rung, split, space=rung.space, teacher=work.teacher_name)

    def write(folder: Path) -> None:
        from ..quality import alignment_quality

        x, x_teacher = space_of(work, rung, split), teacher(work, split).obsm["X_teacher"]
        train, test = split.train, split.test
        found = alignment_quality(x[train], x_teacher[train], x[test], x_teacher[test])
        write_json(folder / "quality.json", found)

    path = _file(work, dataclasses.replace(unit, rows=rows), "quality.json", write)
    found = json.loads(path.read_text())
    found = {name: np.nan if value is None else value for name, value in found.items()}
    return found | maker(facts_of(path.parent))


def score(
    work: Run,
    predictor: Rung | str,
    protocol: Protocol,
    scope: Scope | str = "",
    splits: Sequence[str] = (),
    predictions: bool = False,
) -> Evaluation:
    """Score one predictor under one protocol, or read the finished scores.

    Args:
        predictor: a rung, `frozen`, `random`, the name of a method, or a name in `NOT_A_STUDENT`.
        scope: what the alignment sees, `nested` (each split's training spots) or `all` (every
            spot); empty for the protocol's own.
        splits: names of the splits to score; empty means all splits of the protocol.
        predictions: whether the predicted values are needed too.

    Raises:
        PekaError: the scope is nested, but each gene of the protocol has splits of its own; or a
            name in `splits` is no split of the protocol.
    """
    unit, sees = inputs.evaluation_unit(work, predictor, protocol, scope, splits)

    def write(folder: Path) -> None:
        tasks = [task for task in work.tasks(protocol) if task.split.name in sees]
        evaluate(work.cohort(), _predictor(work, predictor, sees), protocol, tasks).save(folder)

    needs = "predictions.h5ad" if predictions else "scores.csv.gz"
    folder = make(work.folder, unit, write, needs, work.device)
    with told_of_damage(folder / "scores.csv.gz"):
        return dataclasses.replace(Evaluation.load(folder), made=maker(facts_of(folder)))


def adapters_of(
    work: Run,
    rung: Rung | str,
    protocol: Protocol,
    scope: Scope | str = "",
    splits: Sequence[str] = (),
) -> str:
    """Twelve hex digits that name the adapters behind a score; "" for the frozen encoder."""
    rung = as_rung(rung)
    if rung.method == "none":
        return ""
    _, sees = inputs.evaluation_unit(work, rung, protocol, scope, splits)
    cards = {s.name: align(work, rung, s, "card.json") / "card.json" for s in sees.values()}
    return digest_of({name: json.loads(card.read_text())["sha256"] for name, card in cards.items()})


def _predictor(work: Run, predictor: Rung | str, sees: dict[str, Split]):
    """What `evaluate` scores: features or a function. `sees`: scored split -> aligned split."""
    here = predictor, work.folder, work.world
    if predictor == "oracle":  # it keeps what it has drawn, for the next protocol
        return work.once(here, lambda: oracle(work.cohort()))
    if predictor == "permuted_targets":
        return permuted_targets(space_of(work, "frozen"), seed=work.profile.seed)
    if predictor == "teacher":
        of_split = lambda split: targets.teacher_as_features(teacher(work, split))
        return {name: functools.partial(of_split, split) for name, split in sees.items()}
    if predictor in CONTROLS or predictor in REFERENCES:
        control, tiles = (CONTROLS | REFERENCES)[predictor], predictor == "colour"
        return work.once(here, lambda: control(work.cohort(tiles=tiles)))
    if as_rung(predictor).method == "none":
        return space_of(work, predictor)
    of_split = functools.partial(space_of, work, predictor)  # tables of all splits may not fit
    return {name: functools.partial(of_split, split) for name, split in sees.items()}


def umap(work: Run, rung: Rung | str, split: Split | str, labels_of: Split | str) -> pd.DataFrame:
    """UMAP of all spots in a rung's space: x, y, patient, pseudo_label (of split `labels_of`)."""
    rung, fitted = as_rung(rung), work.split(labels_of).train
    aligned = None if rung.method == "none" else work.split(split)
    rows = [fitted] if aligned is None else [seen_by(work, rung, aligned), fitted]
    unit = student_unit(work, "umap", rung, aligned, space=rung.space, teacher=work.teacher_name)
    unit = dataclasses.replace(unit, rows=sha256_of_rows(*rows))
    if aligned is None:
        plain = work.profile.recipe  # the pseudo-labels depend on it
        unit = dataclasses.replace(unit, recipe=Recipe(k=plain.k, labels=plain.labels))

    def write(folder: Path) -> None:
        from ..quality import umap_points

        table = features(work, rung, split)
        points = umap_points(table.obsm[f"X_{rung.space}"], table.obs_names)
        labels = teacher(work, labels_of).obs["pseudo_label"]
        points = points.assign(pseudo_label=labels, patient=table.obs["patient"])
        points.to_csv(folder / "umap.csv", index_label="spot")

    path, text = _file(work, unit, "umap.csv", write), {"patient": str, "pseudo_label": str}
    return pd.read_csv(path, index_col="spot", dtype=text)


def _array(work: Run, unit: Unit, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The one array of a unit; `compute()` makes it if it is missing."""
    name = f"{unit.stage}.npy"
    return np.load(_file(work, unit, name, lambda folder: np.save(folder / name, compute())))


def _file(work: Run, unit: Unit, name: str, write: Callable[[Path], None]) -> Path:
    """The file `name` of a unit; `write(folder)` makes it if it is missing."""
    return make(work.folder, unit, write, name, work.device) / name


@functools.lru_cache(maxsize=TABLES_KEPT)
def _read(path: Path) -> ad.AnnData:
    """A unit's table, with what made it in uns["made"]. Callers share it and must not change it."""
    with told_of_damage(path):
        table = ad.read_h5ad(path)
    table.uns["made"] = maker(facts_of(path.parent))
    return table
