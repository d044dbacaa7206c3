"""What a stage is given: its recipe, the spots that it sees, and the unit that names both."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .. import targets
from ..cohort import Split
from ..common.errors import PekaError
from ..common.files import sha256_of_rows
from ..controls import CONTROLS, REFERENCES
from ..protocols import Protocol, Scope, splits_to_align
from ..recipe import Recipe
from .run import Run
from .rungs import Rung, as_rung
from .units import Unit, changed_fields, digest_of

NOT_A_STUDENT = ("oracle", "permuted_targets", "teacher", *CONTROLS, *REFERENCES)


def recipe_of(work: Run, rung: Rung, split: Split | None = None) -> Recipe:
    """The profile's recipe with the changes of a rung, of the run's world and of the split."""
    recipe = dataclasses.replace(rung.change(work.profile.recipe), **dict(work.world.recipe))
    is_mixed = split is not None and split.shares_sections(work.cohort().obs["sample"].to_numpy())
    return recipe.for_split(is_mixed)


def seen_by(work: Run, rung: Rung, split: Split) -> np.ndarray:
    """The training spots (n,) of a split that a rung's teacher and alignment see."""
    return targets.training_spots(work.cohort().obs, split.train, rung.share, work.profile.seed)


def student_unit(work: Run, stage: str, rung: Rung, split: Split | None, **fields) -> Unit:
    """The unit of a student's work; a frozen encoder has no split, teacher or recipe.

    Args:
        split: the split whose training spots the student saw; None for no split or several.
        fields: further fields of the unit.
    """
    fields |= {"encoder": work.encoder_name(rung.encoder), "method": rung.method}
    if split is not None:
        rows = sha256_of_rows(seen_by(work, rung, split))
        fields |= {"split": split.name, "rows": rows}
    if rung.method != "none":
        fields |= {"teacher": work.teacher_name, "taught_by": rung.taught_by}
        fields |= {"recipe": recipe_of(work, rung, split)}
    if "teacher" in fields:
        fields["seed"] = work.profile.seed  # of the alignment, and of the pseudo-labels
    return work.unit(stage, **fields)


def evaluation_unit(
    work: Run, predictor: Rung | str, protocol: Protocol, scope: Scope | str, names: Sequence[str]
) -> tuple[Unit, dict[str, Split]]:
    """The unit of a score, and for each scored split the split whose training spots align.

    Args:
        scope: `nested` or `all`; empty for the protocol's own.
        names: names of the splits that are scored; empty for all of the protocol.

    Raises:
        PekaError: `names` is a text or holds a name that is no split of the protocol, or the
            alignment cannot be nested (`splits_to_align`).
    """
    if isinstance(names, str):
        raise PekaError(f"splits {names!r}: expected a tuple of names, ({names!r},)")
    is_student = predictor not in NOT_A_STUDENT
    rung = as_rung(predictor) if is_student else Rung("none")
    is_fitted = predictor == "teacher" or rung.method != "none"  # to the spots that it sees
    scope = Scope(scope or protocol.scope)
    splits = {split.name: split for split in protocol.splits(work.cohort())}
    if unknown := set(names) - splits.keys():
        raise PekaError(f"protocol {protocol.name} has no split {unknown}; it has {list(splits)}")
    scored = [split for name, split in splits.items() if not names or name in names]
    sees = splits_to_align(work.cohort(), protocol, scored, scope) if is_fitted else scored
    fields = {"protocol": protocol.name, "rules": digest_of(changed_fields(protocol))}
    if is_student:
        unit = student_unit(work, "evaluation", rung, None, space=rung.space, **fields)
    else:
        fields |= {"encoder": work.encoder_name()} if predictor == "permuted_targets" else {}
        fields |= {"teacher": work.teacher_name} if predictor == "teacher" else {}
        unit = work.unit("evaluation", method=predictor, seed=work.profile.seed, **fields)
    pairs = list(zip(scored, sees, strict=True))
    rows = [mask for s, a in pairs for mask in (seen_by(work, rung, a), s.test)]
    unit = dataclasses.replace(
        unit, split=",".join(names), rows=sha256_of_rows(*rows), scope=scope if is_fitted else ""
    )
    return unit, {s.name: a for s, a in pairs}
