"""Checks of a profile's values: options by the signature of source and teacher, rungs, paths."""

import dataclasses
import importlib
import inspect
import typing
from pathlib import Path

from ..common.errors import PekaError
from ..common.folders import PACKAGE
from ..common.typed_values import (
    absolute,
    fitted,
    fitted_fields,
    options_of,
    prefixed_errors,
    within,
)
from ..models import own_file
from ..recipe import ABOVE_0, FROM_0, FROM_1, FROM_2, METHODS, Recipe
from .rungs import Rung, read_rung

OPTION_GROUPS = ("source_options", "teacher_options")
# options of a source whose names mean something else in a profile
OWN_NAMES = {"cohort_seed": "seed", "hidden_cues": "hidden"}
SPACES = ("encoder", "projected", "concat")
SEED = ("from 0 to below 2^32", lambda v: 0 <= v < 2**32)
RANGES = {  # of profiles and rungs
    "cues_off_splits": FROM_0,
    "seed": SEED,
    "share": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "compile": ("auto, always or never", lambda v: v in ("auto", "always", "never")),
}
OPTION_RANGES = {  # of numbers among the options of sources and teachers
    "patients": FROM_2, "sections": FROM_1, "spots": FROM_1, "folds": FROM_2, "min_umi": FROM_0,
    "seed": SEED, "workers": FROM_1, "hidden": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "n_components": FROM_1, "scale": ABOVE_0, "min_genes": FROM_0, "tokens": FROM_1,
    "max_length": FROM_2, "draw_seed": SEED, "n_latent": FROM_1, "max_epochs": FROM_1,
}  # fmt: skip


def source_of(name: str):
    """The module of `sources` or `drawn` that builds a profile's cohort with its `build`.

    Raises:
        PekaError: there is no such module.
    """
    known = {
        file.stem: file.parent.name
        for wing in ("drawn", "sources")
        for file in (PACKAGE / wing).glob("*.py")
        if "\ndef build(" in file.read_text(encoding="utf-8")
    }
    if name not in list(known):
        raise PekaError(f"source {name!r} is unknown; there are {', '.join(sorted(known))}")
    return importlib.import_module(f"peka_core.{known[name]}.{name}")


def kinds_of(values: dict, group: str) -> dict[str, object]:
    """Name -> declared type of each option that a profile's source or teacher takes."""
    if group == "source_options":
        _, *kinds = options_of(source_of(values["source"]).build).items()  # the first is the path
        kinds = dict(kinds)
        return kinds | {own: kinds[name] for own, name in OWN_NAMES.items() if name in kinds}
    from ..teachers import TEACHERS

    if values["teacher"] not in list(TEACHERS):
        known = ", ".join(TEACHERS)
        raise PekaError(f"teacher {values['teacher']!r} is unknown; there are {known}")
    return options_of(TEACHERS[values["teacher"]].__init__)


def with_teacher(values: dict, name: str) -> dict:
    """The values with another teacher, and its options at their defaults in place of the old ones.

    An option with the name of a value of profiles, such as `seed`, is left out.
    """
    if name == values["teacher"]:
        return values
    values = values | {"teacher": name}
    kinds_of(values, "teacher_options")  # refuses a name that does not exist
    from ..teachers import TEACHERS

    parameters = inspect.signature(TEACHERS[name]).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in values}
    return values | {"teacher_options": options}


def with_paths(values: dict, folder: Path) -> dict:
    """The options of source and teacher with absolute paths; relative ones start at `folder`.

    An option is a path if its declared type is. HEST's `index` is a name inside the mirror, unless
    it starts with `~`, `./` or `../`.
    """

    def place(name, value, kind):
        is_path = Path in typing.get_args(kind) and isinstance(value, (str, Path))
        is_path |= name == "index" and str(value).startswith(("~", "./", "../"))
        return str(absolute(folder / Path(value).expanduser())) if is_path and value else value

    placed = {}
    for group in OPTION_GROUPS:
        kinds = kinds_of(values, group)
        placed[group] = {n: place(n, value, kinds.get(n)) for n, value in values[group].items()}
    return placed | own_encoders(values, folder)


def own_encoders(values: dict, folder: Path) -> dict:
    """The values that name encoders, with absolute paths of the user's own files."""

    def place(entry):
        if isinstance(entry, dict) and entry.get("encoder"):
            return entry | {"encoder": own_file.placed(entry["encoder"], folder)}
        return entry

    found = {"encoder": own_file.placed(values["encoder"], folder)} if "encoder" in values else {}
    for group in ("others", "ladder"):
        if isinstance(values.get(group), (list, tuple)):
            found[group] = [place(entry) for entry in values[group]]
    return found


def checked_options(values: dict, group: str) -> dict:
    """The options of a profile's source or teacher, each in its declared type and range.

    Raises:
        PekaError: an option is unknown, or a value does not fit.
    """
    kinds, options, kind = kinds_of(values, group), {}, group.removesuffix("_options")
    if unknown := sorted(str(name) for name in values[group] if name not in kinds):
        who, known = f"{kind} {values[kind]}", ", ".join(kinds)
        raise PekaError(f"{who} has no option {', '.join(unknown)}; known: {known}")
    for name, value in values[group].items():
        options[name] = fitted(value, kinds[name], name)
        if isinstance(options[name], (int, float)) and not isinstance(options[name], bool):
            within(options[name], OPTION_RANGES.get(OWN_NAMES.get(name, name)), name)
    if group == "teacher_options":
        from ..teachers import load_teacher

        load_teacher(values["teacher"], **options)  # a teacher makes further checks
    return options


def check_complete(profile) -> None:
    """Refuse a profile without an option that its source needs, such as the directory of `own`.

    Raises:
        PekaError: an option is missing; the message says how to give it.
    """
    _, *parameters = inspect.signature(source_of(profile.source).build).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    if lacking := [name for name in needed if profile.source_options.get(name, "") == ""]:
        flag = " ".join(f"-p {name}=..." for name in lacking)
        flag = "--cohort DIR" if lacking == ["path"] else flag
        raise PekaError(
            f"profile {profile.name}: its source {profile.source} needs {' and '.join(lacking)}. "
            f"Run peka run {profile.name} {flag}; in a notebook set "
            f'overrides = {{"{lacking[0]}": ...}} and run = "NAME".'
        )


def checked_rung(entry, recipe: Recipe, group: str) -> Rung | str:
    """An entry of `ladder` or `others`: the name of a predictor, or a rung.

    Args:
        recipe: the profile's, on top of which the rung's values are checked.

    Raises:
        PekaError: the entry is not a rung, or a value does not fit.
    """
    if isinstance(entry, str) and group == "ladder":
        return entry
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe", {}), dict):
        example = "{name: mine, method: bat, recipe: {k: 8}}"
        raise PekaError(f"{group}: expected entries such as {example}, not {entry!r}")
    with prefixed_errors(f"{group}, {entry.get('name') or entry}"):
        rung = read_rung(entry)
        rung = Rung(**fitted_fields(rung, RANGES))
        if rung.space not in SPACES:
            raise PekaError(f"space {rung.space!r} is unknown: {' or '.join(SPACES)}")
        changed = rung.change(recipe)
    pairs = tuple((key, getattr(changed, key)) for key, _ in rung.recipe)
    return dataclasses.replace(rung, recipe=pairs)


def check_methods(name: str, methods: tuple[str, ...]) -> None:
    """Refuse methods that train nothing."""
    known = [method for method in METHODS if method != "none"]
    if unknown := sorted(set(methods) - set(known)):
        raise PekaError(
            f"{name}: {', '.join(unknown)} cannot be aligned; there are {', '.join(known)}. The "
            "frozen encoder is always scored and needs no entry."
        )


def check_chapters(chapters, values: dict) -> None:
    """Refuse a small study or a second world (`profile.Chapters`) if the source cannot draw it."""
    few, kinds = chapters.few, kinds_of(values, "source_options")
    if few and set(few) != {"patients", "epochs"}:
        raise PekaError(f"chapters: few: expected {{patients: N, epochs: N}}, or {{}}, not {few!r}")
    for name, check in (("patients", FROM_2), ("epochs", FROM_1)):
        within(fitted(few.get(name), int | None, f"few: {name}"), check, f"few: {name}")
    for name, needs in (("few", "patients"), ("cues_off_splits", "hidden")):
        if getattr(chapters, name) and needs not in kinds:
            nothing = "{}" if name == "few" else 0
            raise PekaError(
                f"{name}: source {values['source']} cannot draw another cohort; "
                f"write chapters: {{{name}: {nothing}}}"
            )
