"""Make a model folder from a run: the student, a head, and what can be expected of them.

The head is that of protocol strict, fitted on the training spots of one split, or on all spots
without copies of sections. What can be expected is measured on patients that were held out
(`expected.py`).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..cohort import Cohort, Split
from ..common.errors import PekaError
from ..controls import colour
from ..encoders import Encoder
from ..genes import log_cp10k, variable_genes
from ..head import choose_alpha, fit_head
from ..layout.tables import originals
from ..protocols import PROTOCOLS
from ..recipe import METHODS
from ..runner import stages, units
from ..runner.inputs import recipe_of, student_unit
from ..runner.provenance import provenance
from ..runner.run import Run
from ..runner.rungs import Rung
from ..student import Student
from ..tasks import Task
from ..unfamiliar import fit_familiar
from .expected import Expected, measure
from .model_card import licences_of, notes_of, readme
from .model_folder import check_free, save_model

STRICT = PROTOCOLS["strict"]
SPACES = ("encoder", "projected")


def export(
    work: Run, out: str | Path, method: str = "bat", space: str = "encoder", split: str = "all"
) -> Path:
    """Write a model folder and return it.

    Units of the run that are missing, such as the alignment on all spots, are made first.

    Args:
        out: the new folder.
        method: the student's method, or `none` for the frozen encoder.
        space: features that the head reads, `encoder` or `projected`.
        split: `all`, or a split of the cohort. Then student and head see its training spots only,
            and its test sections are new slides.

    Raises:
        PekaError: the folder is not empty, or method, space or split cannot be exported.
    """
    check_free(out)
    rung, cohort = _rung(method, space), work.cohort()
    trained = training_spots(cohort, split)
    folds = held_out(cohort, trained)
    _say_what_is_trained(work, rung, split, folds if split == "all" else [])
    task = _task(cohort, trained)
    x = stages.space_of(work, rung, split)  # (n, d)
    rows = task.rows[0]
    alpha = choose_alpha(x, task.targets, rows, task.obs, STRICT.alphas)
    frozen = stages.space_of(work, "frozen")  # (n, d)
    head, familiar = fit_head(x[rows], task.targets[rows]), fit_familiar(frozen[rows])
    expected = _expected(work, rung, task, folds, x, frozen)
    encoder = work.encoder(rung.encoder)
    network: Student | Encoder = encoder
    if method != "none":
        network = Student.load(stages.align(work, rung, split), encoder)
    card = _card(work, rung, task, expected, alpha)
    return save_model(out, network, head, alpha, expected.genes, familiar, card, readme)


def _rung(method: str, space: str) -> Rung:
    """The student that is exported, after a check of both words."""
    known = [name for name in METHODS if name != "full"]
    if method == "full":
        raise PekaError(
            "method full trains a copy of the encoder, and a model folder never holds an encoder's "
            f"weights; expected one of {', '.join(known)}"
        )
    spaces = SPACES[:1] if method == "none" else SPACES
    for name, value, words in (("method", method, known), ("space", space, spaces)):
        if value not in words:
            raise PekaError(f"{name} {value!r} (method {method}): expected {' or '.join(words)}")
    return Rung(method, space)


def training_spots(cohort: Cohort, split: str) -> Split:
    """The spots that a model is fitted on, without copies of sections.

    Raises:
        PekaError: it is neither `all` nor one of the cohort's own splits.
    """
    if split == "all":
        samples = cohort.obs.drop_duplicates("sample").set_index("sample")
        copies = originals(samples["duplicate_of"])  # sample id -> the section that it copies
        used = ~cohort.obs["sample"].isin(copies).to_numpy()
        return Split("all", used, np.zeros(len(used), bool))
    own = {found.name: found for found in STRICT.splits(cohort)} if cohort.splits else {}
    if split not in own:
        raise PekaError(f"{cohort.path}: no split {split!r}; expected {', '.join(['all', *own])}")
    return own[split]


def held_out(cohort: Cohort, trained: Split) -> list[Split]:
    """The splits on which a model's expectations are measured; none if nothing can be held out.

    For `all` they are the cohort's own that hold out patients, or if there are none, sections. For
    another split, each leaves out one of its training patients, or sections if there is one
    patient.
    """
    if trained.name == "all":
        own = STRICT.splits(cohort) if cohort.splits else []
        by_patient = [split for split in own if split.scheme == "patients"]
        return by_patient or own
    for scheme, column in (("patients", "group"), ("sections", "sample")):
        names = cohort.obs[column].to_numpy()
        sides = [trained.train & (names == name) for name in np.unique(names[trained.train])]
        if len(sides) > 1:
            return [
                Split(f"{scheme}/{i}", trained.train & ~side, side) for i, side in enumerate(sides)
            ]
    return []


def _say_what_is_trained(work: Run, rung: Rung, split: str, folds: list[Split]) -> None:
    """Name the alignments that the run does not have yet, because they take time."""
    if rung.method == "none":
        return
    needed = {split: ("alignment", "adapter.safetensors")}
    needed |= {fold.name: ("features", "features.h5ad") for fold in folds}
    missing = [
        name
        for name, (stage, file) in needed.items()
        if not units.find(work.folder, student_unit(work, stage, rung, work.split(name)), file)
    ]
    if missing:
        print(
            f"runs/{work.folder.name} lacks results of the method {rung.method} on "
            f"{', '.join(missing)}. They are made first, as in chapter 3.",
            flush=True,
        )


def _task(cohort: Cohort, trained: Split) -> Task:
    """The protocol's genes on the training spots, with their targets on all spots."""
    genes = variable_genes(cohort, [trained.train], STRICT.n_genes)[0]
    adata = cohort.adata(genes=genes)
    rules = dataclasses.replace(STRICT, genes_from=tuple(genes))
    spatial = np.asarray(adata.obsm["spatial"])
    return Task(trained, genes, log_cp10k(adata), [""] * len(genes), adata.obs, spatial, rules)


def _expected(
    work: Run, rung: Rung, task: Task, folds: list[Split], x: np.ndarray, frozen: np.ndarray
) -> Expected:
    """What can be expected of the model, and of tile colour and the frozen encoder beside it."""
    nested = task.split.name == "all"
    key = "colour", work.folder, work.world  # where a score of chapter 4 keeps it, too
    controls: dict[str, Callable] = {
        "tile colour": lambda _: work.once(key, lambda: colour(work.cohort(tiles=True)))
    }
    if rung.method != "none" and nested:  # otherwise the student saw what the encoder did not
        controls["frozen encoder"] = lambda _: frozen
    features_of = functools.partial(_nested, work, rung) if nested else lambda _: x
    seen = rung.method != "none" and not nested
    cohort = work.cohort()
    return measure(cohort, task, folds, features_of, frozen, controls, work.profile.seed, seen)


def _nested(work: Run, rung: Rung, fold: Split) -> np.ndarray:
    """Features (n, d) of the student that was aligned on the training spots of a split."""
    return stages.space_of(work, rung, fold.name)


def _card(work: Run, rung: Rung, task: Task, expected: Expected, alpha: float) -> dict:
    """What card.json says."""
    cohort, profile, obs = work.cohort(), work.profile, task.obs[task.split.train]
    samples = cohort.samples.loc[obs["sample"].unique()]
    own = profile.source_options.get("path")
    sizes = samples.um_per_px.dropna()
    left_out = 0 if task.split.test.any() else len(cohort.samples) - len(samples)
    student = (
        {}
        if rung.method == "none"
        else {
            "recipe": dataclasses.asdict(recipe_of(work, rung, work.split(task.split.name))),
            "teacher": work.teacher_name,
        }
    )
    return {
        "cohort": {
            "name": Path(own).name if own else f"{profile.source}, runs/{work.folder.name}",
            "digest": cohort.digest, "organs": sorted(set(samples.organ) - {""}),
            "technologies": sorted(set(samples.technology) - {""}),
            "patients": samples.group.nunique(), "sections": len(samples), "spots": len(obs),
        },
        "profile": profile.name, "split": task.split.name, "protocol": STRICT.name,
        "space": rung.space, **student, "seed": profile.seed, "alpha": alpha,
        "genes": len(task.genes), "supported": int(expected.genes["supported"].sum()),
        "scores": expected.scores, "held_out": {"unit": expected.unit, "n": expected.n},
        "threshold": expected.threshold, "no_interval": expected.no_interval,
        "um_per_px": [sizes.min(), sizes.max()] if len(sizes) else None,
        "licences": licences_of(work, rung, samples), "made": provenance(work.device),
        "notes": notes_of(expected, rung.method, task.split.name, left_out),
        "holds": "adapter and regression; never the weights of the encoder",
        "use": "For research. Not for diagnosis.",
    }  # fmt: skip
