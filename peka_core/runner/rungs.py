"""Rungs: which student to train or to score. A ladder is a list of them in a profile."""

import dataclasses
from dataclasses import dataclass

from ..common.errors import PekaError
from ..recipe import METHODS, RECIPES, Recipe

TAUGHT_BY = ("teacher", "permuted_teacher", "genes")


@dataclass(frozen=True)
class Rung:
    """One student, and the space in which its features are read.

    Rungs that differ in name and space alone are the same trained student.

    Attributes:
        method: what is trained (`METHODS`); `none` is the frozen encoder.
        space: `encoder`, `projected` or `concat` (frozen beside projected).
        taught_by: `teacher`; `permuted_teacher`, whose rows are shuffled within each section, so
            that only the section's composition is left; or `genes`, the target genes themselves.
        recipe: changes to the profile's recipe, as sorted (name, value) pairs.
        encoder: another encoder than the profile's.
        share: of the training patients that teacher and alignment see; the head sees all of them.
        name: what tables and figures call it.
    """

    method: str
    space: str = "encoder"
    taught_by: str = "teacher"
    recipe: tuple[tuple[str, object], ...] = ()
    encoder: str = ""
    share: float = 1.0
    name: str = ""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe of this rung: the profile's with this rung's changes."""
        return dataclasses.replace(recipe, **dict(self.recipe))


NAMED = {"frozen": Rung("none"), "random": Rung("none", encoder="random")}


def as_rung(rung: "Rung | str") -> Rung:
    """The rung of a name: `frozen`, `random`, or a method's; a rung is returned as it is."""
    return NAMED.get(rung, Rung(rung)) if isinstance(rung, str) else rung


def first_adapter(methods: tuple[str, ...]) -> str:
    """The first of a profile's methods that changes the encoder; "" if none does."""
    return next((method for method in methods if method not in ("none", "projector_only")), "")


def read_rung(values: dict) -> Rung:
    """A rung from a profile, such as `{name: L_KD only, recipe: {lambda_struct: 0.0}}`.

    The method is bat where none is given. `recipe: {like: beyond, epochs: 5}` starts from one of
    `recipe.RECIPES` instead of the profile's recipe.

    Raises:
        PekaError: unknown keys, recipe values or teachers.
    """
    values = {"method": "bat"} | values
    changes = dict(values.pop("recipe", {}))
    like = changes.pop("like", "")
    for name, given, known in (
        ("key", values, [f.name for f in dataclasses.fields(Rung)]),
        ("recipe value", changes, [f.name for f in dataclasses.fields(Recipe)]),
        ("recipe after `like:`,", [like] if like else [], RECIPES),
        ("method", [values["method"]], METHODS),
        ("taught_by", [values.get("taught_by", "teacher")], TAUGHT_BY),
    ):
        if unknown := sorted(str(word) for word in given if word not in list(known)):
            rung = values.get("name") or values["method"]
            raise PekaError(
                f"rung {rung!r}: unknown {name} {', '.join(unknown)}; known: {', '.join(known)}"
            )
    changes = (dataclasses.asdict(RECIPES[like]) if like else {}) | changes
    pairs = (
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in sorted(changes.items())
    )
    return Rung(**values, recipe=tuple(pairs))
