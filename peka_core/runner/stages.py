"""The stages of a run, one function each: each finds what is finished and makes what is not.

    work = open_run("demo")
    stages.teacher(work, "patients/0")           02  counts -> X_teacher, pseudo-labels
    stages.align(work, "bat", "patients/0")      03  encoder + teacher -> adapter, projector
    stages.features(work, "bat", "patients/0")   03  tiles -> features
    stages.score(work, "bat", protocol)          04  features -> predictions, scores

What is trained or scored is a rung: the name of a method, or a `Rung` that says more. A split is a `Split` or the name of one
(`Run.split`); its rows decide what may be seen, and name the unit.
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

from .. import targets as lessons
from ..cohort import Split
from ..controls import CONTROLS, REFERENCES, permuted_targets
from ..drawn.oracle import oracle
from ..errors import PekaError
from ..evaluation import Evaluation, evaluate
from ..files import sha256_of_rows, write_json
from ..protocols import Protocol, protocol_of
from ..recipe import Recipe
from .run import Run
from .rungs import Rung, as_rung
from .units import Unit, changed_fields, digest_of, facts_of, make, partial, told_of_damage

NOT_A_STUDENT = ("oracle", "permuted_targets", "teacher", *CONTROLS, *REFERENCES)

if (
    TYPE_CHECKING
):  # torch and timm take seconds to import, and only alignment and new features need them
    from ..student import Student


# ---- 02 teacher ----------------------------------------------------------------------------------


def teacher(
    work: Run, split: Split | str, world: str = "on", rung: Rung | str = "bat"
) -> ad.AnnData:
    """X_teacher and pseudo-labels of all spots, fitted on the training spots of `split`.

    Args:
        rung: its share of training patients, and its recipe's k and labels.
    """
    rung, split = as_rung(rung), work.split(split, world)
    recipe = work.recipe(rung)
    seen, _ = work.rows(split, world, rung.share)
    unit = work.unit(
        "teacher", world, split=split.name, rows=sha256_of_rows(seen), teacher=work.teacher_name, seed=work.profile.seed,
        recipe=Recipe(k=recipe.k, labels=recipe.labels),  # all that it takes from a recipe
    )  # fmt: skip

    def write(folder: Path) -> None:
        from ..teachers import embed_spots, load_teacher

        model = load_teacher(work.profile.teacher, **work.profile.teacher_options)
        adata = work.cohort(world).adata(join=model.join)
        known = None if model.learns else _embedding(work, world, model, adata)
        embedded = embed_spots(
            adata, seen, model, recipe.k, work.profile.seed, recipe.labels, known
        )
        embedded.write_h5ad(folder / "teacher.h5ad", compression="gzip")

    return _read(_file(work, unit, "teacher.h5ad", write))


def _embedding(work: Run, world: str, model, adata: ad.AnnData) -> np.ndarray:
    """X_teacher (n, d_t) of a teacher that learns nothing: no split or seed changes it, so it is made once."""
    unit = work.unit("embedding", world, teacher=work.teacher_name)
    return np.load(
        _file(
            work,
            unit,
            "x_teacher.npy",
            lambda folder: np.save(folder / "x_teacher.npy", model.embed(adata)),
        )
    )


def lesson(
    work: Run, rung: Rung | str, split: Split | str, world: str = "on"
) -> tuple[np.ndarray, np.ndarray]:
    """What a rung's student is trained towards: targets `(n, d_t)` and pseudo-labels `(n,)` of all spots.

    A spot that the teacher could not use has label -1, whatever the targets; nobody trains on it.
    `permuted_teacher` shuffles both within each section, training spots among themselves; `genes` are the split's own target
    genes, standardised on its training spots (no test spot has a say in them).
    """
    rung, split = as_rung(rung), work.split(split, world)
    embedded = teacher(work, split, world, rung)
    x_teacher, labels = (
        embedded.obsm["X_teacher"],
        embedded.obs["pseudo_label"].to_numpy().astype(int),
    )
    seen, _ = work.rows(split, world, rung.share)
    if rung.taught_by == "permuted_teacher":
        order = lessons.permuted_teacher(
            work.cohort(world).obs["sample"].to_numpy(), seen, labels, work.profile.seed
        )
        return x_teacher[order], labels[order]
    if rung.taught_by == "genes":
        return lessons.gene_targets(_own_targets(work, split, world), seen), labels
    return x_teacher, labels


def _own_targets(work: Run, split: Split, world: str) -> np.ndarray:
    """Targets (n, g) of the genes that a split's protocol chooses on its training spots; on `all`, those of `peka_paper`."""
    tasks = work.tasks(protocol_of(split.name), world)
    same = [task for task in tasks if np.array_equal(task.split.train, split.train)] or [
        task for task in tasks if split.name == "all"
    ]
    if not same:
        raise PekaError(
            f"taught by genes on {split.name}: no known protocol has a split of these training spots, so no genes are known"
        )
    return same[0].targets


def hashes(work: Run) -> np.ndarray:
    """Perceptual hashes of all tiles, `(n,)` uint64 (`duplicates.difference_hash`)."""
    from ..layout.duplicates import difference_hash

    unit = work.unit("hashes", "on")
    return np.load(
        _file(
            work,
            unit,
            "hashes.npy",
            lambda folder: np.save(folder / "hashes.npy", difference_hash(work.tiles())),
        )
    )


# ---- 03 alignment --------------------------------------------------------------------------------


def align(
    work: Run,
    rung: Rung | str,
    split: Split | str,
    world: str = "on",
    needs: str = "adapter.safetensors",
) -> Path:
    """Folder of the aligned student: adapter, projector, card, history.

    Args:
        split: the split whose training spots the student may see; `all` for every spot.
        needs: file that must be there; the committed demo run keeps every history but few weights, and
            those left out are trained again where they are needed.
    """
    rung, split = as_rung(rung), work.split(split, world)
    unit = _made_of(work, "alignment", rung, split, world)

    def write(folder: Path) -> None:
        student, losses = train(
            work, rung, split, world, checkpoint=partial(work.folder, unit) / "progress.pt"
        )
        student.save(
            folder,
            extra={
                "split": split.name,
                "rows": unit.rows,
                "cohort": unit.cohort,
                "seed": unit.seed,
            },
        )
        losses.to_csv(folder / "history.csv", index=False)

    return make(work.folder, unit, write, needs, work.device)


def train(
    work: Run,
    rung: Rung | str,
    split: Split | str,
    world: str = "on",
    checkpoint: Path | None = None,
    **changes,
) -> tuple["Student", pd.DataFrame]:
    """One alignment in the open: the student and its history.

    Args:
        checkpoint: where the state after each epoch is kept, to go on from after a kill; None keeps nothing.
        changes: of the recipe, by name (`epochs=2`).
    """
    from ..alignment import align as run_alignment
    from ..student import Student

    rung, split = as_rung(rung), work.split(split, world)
    recipe = dataclasses.replace(work.recipe(rung, split, world), **changes)
    targets, labels = lesson(work, rung, split, world)
    seen, _ = work.rows(split, world, rung.share)
    student = Student(
        work.encoder(rung.encoder), rung.method, targets.shape[1], recipe, seed=work.profile.seed
    )
    losses = run_alignment(
        student,
        work.tiles(world),
        targets,
        labels,
        work.groups(seen, world),
        recipe,
        rows=np.flatnonzero(seen & (labels >= 0)),
        seed=work.profile.seed,
        checkpoint=checkpoint,
    )
    return student, losses


def history(work: Run, rung: Rung | str, split: Split | str, world: str = "on") -> pd.DataFrame:
    """Loss history of a finished alignment, one row an epoch."""
    return pd.read_csv(align(work, rung, split, world, "history.csv") / "history.csv")


def features(
    work: Run, rung: Rung | str = "frozen", split: Split | str = "", world: str = "on"
) -> ad.AnnData:
    """Features of all spots: `obsm["X_encoder"]`, and `obsm["X_projected"]` for an aligned student.

    Frozen features (`none`) depend on neither split nor seed and exist once; worlds of the same tissue share them.
    """
    rung = as_rung(rung)
    if rung.method == "none":
        world, split = "on" if work.same_tissue(world) else world, None
    else:
        split = work.split(split, world)
    unit = _made_of(work, "features", rung, split, world)

    def write(folder: Path) -> None:
        table = ad.AnnData(obs=work.cohort(world).obs)
        for space, values in _embed(work, rung, split, world).items():
            table.obsm[f"X_{space}"] = values
        table.write_h5ad(folder / "features.h5ad", compression="gzip")

    return _read(_file(work, unit, "features.h5ad", write))


def _embed(work: Run, rung: Rung, split: Split | None, world: str) -> dict[str, np.ndarray]:
    """Every tile of a world through a rung's student: space -> (n, d)."""
    from ..student import Student, embed_tiles, project_features

    model = work.encoder(rung.encoder)
    if rung.method == "none":
        return embed_tiles(model, work.tiles(world))
    student = Student.load(align(work, rung, split, world), model)
    if (
        rung.method == "projector_only" and student.recipe.pixels == "normalised"
    ):  # its encoder is the frozen one
        frozen = features(work, Rung("none", encoder=rung.encoder), world=world).obsm["X_encoder"]
        return {"encoder": frozen, "projected": project_features(student, frozen)}
    return embed_tiles(student, work.tiles(world))


def quality(work: Run, rung: Rung | str, split: Split | str, world: str = "on") -> dict:
    """Did it align? Held-out R2 and neighbour overlap of one rung's space with X_teacher (`alignment_quality`), and what made them."""
    rung, split = as_rung(rung), work.split(split, world)
    unit = _made_of(
        work, "quality", rung, split, world, space=rung.space, teacher=work.teacher_name
    )
    unit = dataclasses.replace(unit, rows=sha256_of_rows(split.train, split.test))

    def write(folder: Path) -> None:
        from ..quality import alignment_quality

        x, x_teacher = (
            space_of(work, rung, split, world),
            teacher(work, split, world).obsm["X_teacher"],
        )
        found = alignment_quality(
            x[split.train], x_teacher[split.train], x[split.test], x_teacher[split.test]
        )
        write_json(folder / "quality.json", found)

    path = _file(work, unit, "quality.json", write)
    found = {
        name: np.nan if value is None else value
        for name, value in json.loads(path.read_text()).items()
    }
    return found | maker(facts_of(path.parent))


def space_of(work: Run, rung: Rung | str, split: Split | str = "", world: str = "on") -> np.ndarray:
    """Features (n, d) of all spots in a rung's space."""
    rung = as_rung(rung)
    made = features(work, rung, split, world).obsm
    if rung.space == "concat":
        frozen = features(work, Rung("none", encoder=rung.encoder), world=world).obsm["X_encoder"]
        return np.concatenate([frozen, made["X_projected"]], axis=1)  # (n, d + d_t)
    return made[f"X_{rung.space}"]


# ---- 04 evaluation -------------------------------------------------------------------------------


def score(
    work: Run,
    predictor: Rung | str,
    protocol: Protocol,
    scope: str = "",
    split: str = "",
    world: str = "on",
    predictions: bool = False,
) -> Evaluation:
    """Score one predictor under one protocol; finished scores are read, not made again.

    Args:
        predictor: a rung, `frozen`, `random`, the name of a method, or a name in `NOT_A_STUDENT`.
        scope: `nested` (aligned on each split's training spots), `all` (aligned once on all spots); by
            default the protocol's own.
        split: score these splits alone (names, with commas); empty means all splits of the protocol.
        predictions: the predicted values are needed, not the scores alone.

    Raises:
        PekaError: an alignment nested in splits whose genes have folds of their own.
    """
    scope = scope or protocol.scope
    rules = {
        "protocol": protocol.name,
        "zeros": protocol.zeros,
        "rules": digest_of(changed_fields(protocol)),
    }
    if predictor in NOT_A_STUDENT:
        needs = {
            "permuted_targets": {"encoder": work.encoder_name()},
            "teacher": {"teacher": work.teacher_name, "scope": scope},
        }
        rules |= needs.get(predictor, {})
        unit = work.unit(
            "evaluation", world, method=predictor, split=split, seed=work.profile.seed, **rules
        )
    else:
        rung = as_rung(predictor)
        unit = _made_of(work, "evaluation", rung, None, world, space=rung.space, **rules)
        unit = dataclasses.replace(unit, split=split, scope="" if rung.method == "none" else scope)

    def write(folder: Path) -> None:
        tasks, seen = _wanted(work, protocol, scope, split, world)
        evaluate(
            work.cohort(world), _predictor(work, predictor, seen, world), protocol, tasks
        ).save(folder)

    folder = make(
        work.folder,
        unit,
        write,
        "predictions.h5ad" if predictions else "scores.csv.gz",
        work.device,
    )
    with told_of_damage(folder / "scores.csv.gz"):
        return dataclasses.replace(Evaluation.load(folder), made=maker(facts_of(folder)))


def maker(facts: dict) -> dict[str, str]:
    """Commit, device, versions and code of the unit that made a number, as tables have them; `facts`: of its `unit.json`."""
    versions = "; ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return {
        "commit": facts["commit"],
        "device": facts["device"],
        "versions": versions,
        "code": facts["unit"].get("code", ""),
    }


def adapters_of(
    work: Run,
    rung: Rung | str,
    protocol: Protocol,
    scope: str = "",
    split: str = "",
    world: str = "on",
) -> str:
    """Twelve digits that name the weights behind a student's score: of its one adapter, or of those of all splits; "" without."""
    rung, scope = as_rung(rung), scope or protocol.scope
    if rung.method == "none":
        return ""
    splits = _splits(work, protocol, split, world) if scope != "all" else [work.split("all", world)]
    cards = {one.name: align(work, rung, one, world, "card.json") / "card.json" for one in splits}
    digests = {what: json.loads(card.read_text()).get("sha256") for what, card in cards.items()}
    if old := [what for what, digest in digests.items() if digest is None]:
        raise PekaError(
            f"{cards[old[0]]}: names no digest of its weights, so an earlier version wrote it: start a new run, --run NAME"
        )
    return digest_of(digests)


def _splits(work: Run, protocol: Protocol, split: str, world: str) -> list[Split]:
    """The splits of a protocol that are asked for by name."""
    return [
        one
        for one in protocol.splits(work.cohort(world))
        if not split or one.name in split.split(",")
    ]


def _wanted(
    work: Run, protocol: Protocol, scope: str, split: str, world: str
) -> tuple[list, dict[str, Split]]:
    """Tasks of the splits that are asked for, and for each, by its name, the split whose training spots align.

    Raises:
        PekaError: scope nested where each gene has folds of its own: together these train on every spot.
    """
    if scope == "nested" and protocol.gene_folds:
        raise PekaError(
            f"protocol {protocol.name} gives each gene folds of its own, so no spot is held out from all of them and an alignment "
            "cannot be nested in them: score it with scope all"
        )
    tasks = [
        task
        for task in work.tasks(protocol, world)
        if not split or task.split.name in split.split(",")
    ]
    return tasks, {
        task.split.name: work.split("all", world) if scope == "all" else task.split
        for task in tasks
    }


def _predictor(work: Run, predictor: Rung | str, seen: dict[str, Split | None], world: str):
    """What `evaluate` takes: features, or a callable. `seen`: test split -> the split whose training spots align."""
    if predictor == "oracle":
        return oracle(work.cohort(world))
    if predictor == "permuted_targets":
        return permuted_targets(space_of(work, "frozen", "", world), seed=work.profile.seed)
    if predictor == "teacher":
        return {split: _filled(teacher(work, what, world)) for split, what in seen.items()}
    if predictor in CONTROLS or predictor in REFERENCES:
        return (CONTROLS | REFERENCES)[predictor](work.cohort(world, tiles=predictor == "colour"))
    if as_rung(predictor).method == "none":
        return space_of(work, predictor, "", world)
    return {split: space_of(work, predictor, what, world) for split, what in seen.items()}


def _filled(embedded: ad.AnnData) -> np.ndarray:
    """X_teacher (n, d_t) as features (`lessons.filled`)."""
    return lessons.filled(
        embedded.obsm["X_teacher"],
        embedded.obs["pseudo_label"].to_numpy() >= 0,
        embedded.obs["teacher_train"].to_numpy(),
    )


# ---- 05 figures ----------------------------------------------------------------------------------


def umap(work: Run, rung: Rung | str, split: Split | str, labels_of: Split | str) -> pd.DataFrame:
    """UMAP of all spots in a rung's space: x, y, pseudo_label (teacher of split `labels_of`), patient. scanpy, seed 0."""
    rung = as_rung(rung)
    labels = Recipe(k=work.profile.recipe.k, labels=work.profile.recipe.labels)
    own = {} if rung.method != "none" else {"recipe": labels}
    split = work.split(split) if rung.method != "none" else None
    fitted = sha256_of_rows(work.split(labels_of).train)
    unit = _made_of(
        work,
        "umap",
        rung,
        split,
        "on",
        space=rung.space,
        scope=fitted,
        teacher=work.teacher_name,
        **own,
    )

    def write(folder: Path) -> None:
        import scanpy as sc

        table = features(work, rung, split).copy()
        sc.pp.neighbors(table, use_rep=f"X_{rung.space}", random_state=0)
        sc.tl.umap(table, random_state=0)
        points = pd.DataFrame(
            table.obsm["X_umap"], index=table.obs_names, columns=["x", "y"]
        ).round(3)
        points = points.assign(
            pseudo_label=teacher(work, labels_of).obs["pseudo_label"], patient=table.obs["patient"]
        )
        points.to_csv(folder / "umap.csv", index_label="spot")

    return pd.read_csv(
        _file(work, unit, "umap.csv", write),
        index_col="spot",
        dtype={"patient": str, "pseudo_label": str},
    )


def _file(work: Run, unit: Unit, name: str, write: Callable[[Path], None]) -> Path:
    """The file `name` of a unit, which `write(folder)` makes where it is not there."""
    return make(work.folder, unit, write, name, work.device) / name


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> ad.AnnData:
    """A unit's table, with what made it in uns["made"], the last few kept in memory; whoever changes it takes a copy.

    Raises:
        PekaError: it is damaged.
    """
    with told_of_damage(path):
        table = ad.read_h5ad(path)
    table.uns["made"] = maker(facts_of(path.parent))
    return table


def _made_of(work: Run, stage: str, rung: Rung, split: Split | None, world: str, **fields) -> Unit:
    """The unit of what a student makes, or of what is made from it; the frozen encoder depends on no teacher or recipe.

    Args:
        split: whose training spots are used; None where no split is, or several are.
    """
    fields |= {"encoder": work.encoder_name(rung.encoder), "method": rung.method}
    if split is not None:
        seen, _ = work.rows(split, world, rung.share)
        fields |= {"split": split.name, "rows": sha256_of_rows(seen)}
    if rung.method != "none":
        fields |= {"recipe": work.recipe(rung, split, world), "seed": work.profile.seed}
        fields |= {"teacher": work.teacher_name, "taught_by": rung.taught_by, "share": rung.share}
    if "teacher" in fields:
        fields["seed"] = work.profile.seed  # of its pseudo-labels
    return work.unit(stage, world, **fields)
