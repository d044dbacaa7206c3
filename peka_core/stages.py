"""The stages of a run, one function each: each finds what is finished and makes what is not.

    work = open_run("demo")
    stages.teacher(work, "patients/0")           02  counts -> X_teacher, pseudo-labels
    stages.align(work, "bat", "patients/0")      03  encoder + teacher -> adapter, projector
    stages.features(work, "bat", "patients/0")   03  tiles -> features
    stages.score(work, "bat", protocol)          04  features -> predictions, scores

What is trained or scored is a rung: the name of a method, or a `Rung` that says more.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from .controls import CONTROLS, REFERENCES, oracle, permuted_targets
from .evaluation import Evaluation, evaluate
from .files import PekaError
from .ladder import Rung, as_rung
from .protocols import Protocol, protocol_of
from .recipe import Recipe
from .units import Unit, changed_fields, digest_of, make, partial
from .workspace import Run

NOT_A_STUDENT = ("oracle", "permuted_targets", "teacher", *CONTROLS, *REFERENCES)

if TYPE_CHECKING:  # torch and timm take seconds to import, and only alignment and new features need them
    from .student import Student


# ---- 02 teacher ----------------------------------------------------------------------------------


def teacher(work: Run, split: str, world: str = "on", rung: Rung | str = "bat") -> ad.AnnData:
    """X_teacher and pseudo-labels of all spots, fitted on the training spots of `split`.

    Args:
        rung: its share of training patients, and its recipe's k and labels.
    """
    rung = as_rung(rung)
    recipe = work.recipe(rung)
    unit = work.unit(
        "teacher", world, split=split, teacher=work.teacher_name, seed=work.profile.seed, share=rung.share,
        recipe=Recipe(k=recipe.k, labels=recipe.labels),  # all that it takes from a recipe
    )

    def write(folder: Path) -> None:
        from .teachers import embed_spots, load_teacher

        seen, _ = work.rows(split, world, rung.share)
        model = load_teacher(work.profile.teacher, **work.profile.teacher_options)
        adata = work.cohort(world).adata(join=model.join)
        known = None if model.learns else _embedding(work, world, model, adata)
        embedded = embed_spots(adata, seen, model, recipe.k, work.profile.seed, recipe.labels, known)
        embedded.write_h5ad(folder / "teacher.h5ad", compression="gzip")

    return _read(_file(work, unit, "teacher.h5ad", write))


def _embedding(work: Run, world: str, model, adata: ad.AnnData) -> np.ndarray:
    """X_teacher (n, d_t) of a teacher that learns nothing: no split or seed changes it, so it is made once."""
    unit = work.unit("embedding", world, teacher=work.teacher_name)
    return np.load(_file(work, unit, "x_teacher.npy", lambda folder: np.save(folder / "x_teacher.npy", model.embed(adata))))


def lesson(work: Run, rung: Rung | str, split: str, world: str = "on") -> tuple[np.ndarray, np.ndarray]:
    """What a rung's student is trained towards: targets `(n, d_t)` and pseudo-labels `(n,)` of all spots.

    A spot that the teacher could not use has label -1, whatever the targets; nobody trains on it.
    `permuted_teacher` shuffles both within each section, training spots among themselves; `genes` are the split's own target
    genes, standardised on its training spots (no test spot has a say in them).
    """
    rung = as_rung(rung)
    embedded = teacher(work, split, world, rung)
    x_teacher, labels = embedded.obsm["X_teacher"], embedded.obs["pseudo_label"].to_numpy().astype(int)
    seen, _ = work.rows(split, world, rung.share)
    if rung.taught_by == "permuted_teacher":
        sides = work.cohort(world).obs["sample"].to_numpy() + np.where(seen, "", " unseen")  # no test spot's vector is taught
        sides = sides + np.where(labels < 0, " unusable", "")  # and no empty one
        order = shuffled_within(sides, work.profile.seed)
        return x_teacher[order], labels[order]
    if rung.taught_by == "genes":
        tasks = work.tasks(protocol_of(split), world)
        targets = next((task for task in tasks if task.split.name == split), tasks[0]).targets  # (n, g)
        return (targets - targets[seen].mean(0)) / (targets[seen].std(0) + 1e-6), labels
    return x_teacher, labels


def shuffled_within(sections: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers `(n,)` in which every spot stands for a random one of its own section."""
    dice, order = np.random.default_rng(seed), np.arange(len(sections))
    for section in np.unique(sections):
        here = np.flatnonzero(sections == section)
        order[here] = dice.permutation(here)
    return order


def hashes(work: Run) -> np.ndarray:
    """Perceptual hashes of all tiles, `(n,)` uint64 (`leaks.difference_hash`)."""
    from .leaks import difference_hash

    unit = work.unit("hashes", "on")
    return np.load(_file(work, unit, "hashes.npy", lambda folder: np.save(folder / "hashes.npy", difference_hash(work.tiles()))))


# ---- 03 alignment --------------------------------------------------------------------------------


def align(work: Run, rung: Rung | str, split: str, world: str = "on", needs: str = "adapter.safetensors") -> Path:
    """Folder of the aligned student: adapter, projector, card, history.

    Args:
        split: the split whose training spots the student may see; `all` for every spot.
        needs: file that must be there; the committed demo run keeps every history but few weights, and
            those left out are trained again where they are needed.
    """
    unit = _made_of(work, "alignment", as_rung(rung), split, world)

    def write(folder: Path) -> None:
        student, losses = train(work, rung, split, world, checkpoint=partial(work.folder, unit) / "progress.pt")
        student.save(folder, extra={"split": split, "cohort": unit.cohort, "seed": unit.seed})
        losses.to_csv(folder / "history.csv", index=False)

    return make(work.folder, unit, write, needs, work.device)


def train(
    work: Run, rung: Rung | str, split: str, world: str = "on", checkpoint: Path | None = None, **changes
) -> tuple["Student", pd.DataFrame]:
    """One alignment in the open: the student and its history.

    Args:
        checkpoint: where the state after each epoch is kept, to go on from after a kill; None keeps nothing.
        changes: of the recipe, by name (`epochs=2`).
    """
    from .alignment import align as run_alignment
    from .student import Student

    rung = as_rung(rung)
    recipe = dataclasses.replace(work.recipe(rung, split, world), **changes)
    targets, labels = lesson(work, rung, split, world)
    seen, _ = work.rows(split, world, rung.share)
    student = Student(work.encoder(rung.encoder), rung.method, targets.shape[1], recipe, seed=work.profile.seed)
    losses = run_alignment(
        student, work.tiles(world), targets, labels, work.groups(seen, world), recipe, rows=np.flatnonzero(seen & (labels >= 0)),
        seed=work.profile.seed, checkpoint=checkpoint,
    )
    return student, losses


def history(work: Run, rung: Rung | str, split: str, world: str = "on") -> pd.DataFrame:
    """Loss history of a finished alignment, one row an epoch."""
    return pd.read_csv(align(work, rung, split, world, "history.csv") / "history.csv")


def features(work: Run, rung: Rung | str = "frozen", split: str = "", world: str = "on") -> ad.AnnData:
    """Features of all spots: `obsm["X_encoder"]`, and `obsm["X_projected"]` for an aligned student.

    Frozen features (`none`) depend on neither split nor seed and exist once; worlds of the same tissue share them.
    """
    rung = as_rung(rung)
    if rung.method == "none":
        world, split = "on" if work.same_tissue(world) else world, ""
    unit = _made_of(work, "features", rung, split, world)

    def write(folder: Path) -> None:
        table = ad.AnnData(obs=work.cohort(world).obs)
        for space, values in _embed(work, rung, split, world).items():
            table.obsm[f"X_{space}"] = values
        table.write_h5ad(folder / "features.h5ad", compression="gzip")

    return _read(_file(work, unit, "features.h5ad", write))


def _embed(work: Run, rung: Rung, split: str, world: str) -> dict[str, np.ndarray]:
    """Every tile of a world through a rung's student: space -> (n, d)."""
    from .student import Student, embed_tiles, project_features

    model = work.encoder(rung.encoder)
    if rung.method == "none":
        return embed_tiles(model, work.tiles(world))
    student = Student.load(align(work, rung, split, world), model)
    if rung.method == "projector_only" and student.recipe.pixels == "normalised":  # its encoder is the frozen one
        frozen = features(work, Rung("none", encoder=rung.encoder), world=world).obsm["X_encoder"]
        return {"encoder": frozen, "projected": project_features(student, frozen)}
    return embed_tiles(student, work.tiles(world))


def quality(work: Run, rung: Rung | str, split: str, world: str = "on") -> dict:
    """Did it align? Held-out R2 and neighbour overlap of one rung's space with X_teacher (`alignment_quality`)."""
    rung = as_rung(rung)
    unit = _made_of(work, "quality", rung, split, world, space=rung.space, teacher=work.teacher_name)

    def write(folder: Path) -> None:
        from .alignment import alignment_quality

        seen, test = work.rows(split, world)
        x, x_teacher = space_of(work, rung, split, world), teacher(work, split, world).obsm["X_teacher"]
        found = alignment_quality(x[seen], x_teacher[seen], x[test], x_teacher[test])
        (folder / "quality.json").write_text(json.dumps(found) + "\n")

    return json.loads(_file(work, unit, "quality.json", write).read_text())


def space_of(work: Run, rung: Rung | str, split: str, world: str = "on") -> np.ndarray:
    """Features (n, d) of all spots in a rung's space."""
    rung = as_rung(rung)
    made = features(work, rung, split, world).obsm
    if rung.space == "concat":
        frozen = features(work, Rung("none", encoder=rung.encoder), world=world).obsm["X_encoder"]
        return np.concatenate([frozen, made["X_projected"]], axis=1)  # (n, d + d_t)
    return made[f"X_{rung.space}"]


# ---- 04 evaluation -------------------------------------------------------------------------------


def score(
    work: Run, predictor: Rung | str, protocol: Protocol, scope: str = "", split: str = "", world: str = "on",
    predictions: bool = False,
) -> Evaluation:
    """Score one predictor under one protocol; finished scores are read, not made again.

    Args:
        predictor: a rung, `frozen`, `random`, the name of a method, or a name in `NOT_A_STUDENT`.
        scope: `nested` (aligned on each split's training spots), `all` (aligned once on all spots); by
            default the protocol's own.
        split: score these splits alone (names, with commas); empty means all splits of the protocol.
        predictions: the predicted values are needed, not the scores alone.
    """
    scope = scope or protocol.scope
    wanted = functools.partial(_wanted, work, protocol, scope, split, world)
    rules = {"protocol": protocol.name, "zeros": protocol.zeros, "rules": digest_of(changed_fields(protocol))}
    if predictor in NOT_A_STUDENT:
        needs = {"permuted_targets": {"encoder": work.encoder_name()}, "teacher": {"teacher": work.teacher_name, "scope": scope}}
        rules |= needs.get(predictor, {})
        unit = work.unit("evaluation", world, method=predictor, split=split, seed=work.profile.seed, **rules)
    else:
        rung = as_rung(predictor)
        unit = _made_of(work, "evaluation", rung, split, world, space=rung.space, **rules)
        unit = unit if rung.method == "none" else dataclasses.replace(unit, scope=scope)

    def write(folder: Path) -> None:
        tasks, seen = wanted()
        evaluate(work.cohort(world), _predictor(work, predictor, seen, world), protocol, tasks).save(folder)

    return Evaluation.load(make(work.folder, unit, write, "predictions.h5ad" if predictions else "scores.csv.gz", work.device))


def adapters_of(work: Run, rung: Rung | str, protocol: Protocol, scope: str = "", split: str = "", world: str = "on") -> str:
    """Twelve digits that name the weights behind a student's score: of its one adapter, or of those of all splits; "" without."""
    rung = as_rung(rung)
    if rung.method == "none":
        return ""
    names = [s.name for s in protocol.splits(work.cohort(world)) if not split or s.name in split.split(",")]  # tasks take longer
    seen = ["all"] if (scope or protocol.scope) == "all" else sorted(names)
    cards = {what: align(work, rung, what, world, "card.json") / "card.json" for what in seen}
    digests = {what: json.loads(card.read_text()).get("sha256") for what, card in cards.items()}
    if old := [what for what, digest in digests.items() if digest is None]:
        raise PekaError(f"{cards[old[0]]}: names no digest of its weights, so an earlier version wrote it: start a new run, --run NAME")
    return digest_of(digests)


def _wanted(work: Run, protocol: Protocol, scope: str, split: str, world: str) -> tuple[list, dict[str, str]]:
    """Tasks of the splits that are asked for, and for each the split whose training spots align."""
    tasks = [task for task in work.tasks(protocol, world) if not split or task.split.name in split.split(",")]
    return tasks, {task.split.name: "all" if scope == "all" else task.split.name for task in tasks}


def _predictor(work: Run, predictor: Rung | str, seen: dict[str, str], world: str):
    """What `evaluate` takes: features, or a callable. `seen`: test split -> the split whose training spots align."""
    if predictor == "oracle":
        return oracle(work.cohort(world))
    if predictor == "permuted_targets":
        return permuted_targets(space_of(work, "frozen", "", world), seed=work.profile.seed)
    if predictor == "teacher":
        return {split: _filled(teacher(work, what, world)) for split, what in seen.items()}
    if predictor in CONTROLS or predictor in REFERENCES:
        return (CONTROLS | REFERENCES)[predictor](work.cohort(world, tiles=predictor == "colour"))
    return {split: space_of(work, predictor, what, world) for split, what in seen.items()}


def _filled(embedded: ad.AnnData) -> np.ndarray:
    """X_teacher (n, d_t) as features: a spot that the teacher could not use is the mean of the usable training spots."""
    x, usable = embedded.obsm["X_teacher"], embedded.obs["pseudo_label"].to_numpy() >= 0
    if usable.all():
        return x
    return np.where(usable[:, None], x, x[usable & embedded.obs["teacher_train"].to_numpy()].mean(0))


# ---- 05 figures ----------------------------------------------------------------------------------


def umap(work: Run, rung: Rung | str, split: str, labels_of: str) -> pd.DataFrame:
    """UMAP of all spots in a rung's space: x, y, pseudo_label (teacher of split `labels_of`), patient. scanpy, seed 0."""
    rung = as_rung(rung)
    labels = Recipe(k=work.profile.recipe.k, labels=work.profile.recipe.labels)
    own = {} if rung.method != "none" else {"recipe": labels}
    unit = _made_of(work, "umap", rung, split, "on", space=rung.space, scope=labels_of, teacher=work.teacher_name, **own)

    def write(folder: Path) -> None:
        import scanpy as sc

        table = features(work, rung, split).copy()
        sc.pp.neighbors(table, use_rep=f"X_{rung.space}", random_state=0)
        sc.tl.umap(table, random_state=0)
        points = pd.DataFrame(table.obsm["X_umap"], index=table.obs_names, columns=["x", "y"]).round(3)
        points = points.assign(pseudo_label=teacher(work, labels_of).obs["pseudo_label"], patient=table.obs["patient"])
        points.to_csv(folder / "umap.csv", index_label="spot")

    return pd.read_csv(_file(work, unit, "umap.csv", write), index_col="spot", dtype={"patient": str, "pseudo_label": str})


def _file(work: Run, unit: Unit, name: str, write: Callable[[Path], None]) -> Path:
    """The file `name` of a unit, which `write(folder)` makes where it is not there."""
    return make(work.folder, unit, write, name, work.device) / name


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> ad.AnnData:
    """A unit's table, the last few kept in memory; whoever changes it takes a copy."""
    return ad.read_h5ad(path)


def _made_of(work: Run, stage: str, rung: Rung, split: str, world: str, **fields) -> Unit:
    """The unit of what a student makes, or of what is made from it; the frozen encoder depends on no teacher or recipe."""
    fields |= {"encoder": work.encoder_name(rung.encoder), "method": rung.method, "split": split}
    if rung.method != "none":
        fields |= {"recipe": work.recipe(rung, split, world), "seed": work.profile.seed}
        fields |= {"teacher": work.teacher_name, "taught_by": rung.taught_by, "share": rung.share}
    return work.unit(stage, world, **fields)
