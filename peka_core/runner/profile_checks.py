"""What the values of a profile may be: options by the signature of source and teacher, rungs, paths."""

import dataclasses
import importlib
import inspect
import typing
from pathlib import Path

from ..errors import PekaError
from ..places import PACKAGE
from ..recipe import ABOVE_0, FROM_0, FROM_1, FROM_2, METHODS, Recipe
from ..values import absolute, fitted, fitted_fields, options_of, told_of, within
from .rungs import Rung, read_rung

OPTION_GROUPS = ("source_options", "teacher_options")
OWN_NAMES = {
    "cohort_seed": "seed",
    "hidden_cues": "hidden",
}  # source options whose names a profile has for other things
SPACES = ("encoder", "projected", "concat")
SEED = ("from 0 to below 2^32", lambda v: 0 <= v < 2**32)
RANGES = {
    "cues_off_splits": FROM_0,
    "seed": SEED,
    "share": ("above 0, at most 1", lambda v: 0 < v <= 1),
}  # of profiles and rungs
OPTION_RANGES = {  # of numbers among the options of sources and teachers
    "patients": FROM_2, "sections": FROM_1, "spots": FROM_1, "folds": FROM_2, "min_umi": FROM_0, "seed": SEED, "workers": FROM_1,
    "hidden": ("from 0 to 1", lambda v: 0 <= v <= 1), "n_components": FROM_1, "scale": ABOVE_0, "min_genes": FROM_0, "tokens": FROM_1,
}  # fmt: skip


def source_of(name: str):
    """The module of `peka_core.sources` that builds a profile's cohort.

    Raises:
        PekaError: there is none of this name.
    """
    known = {
        file.stem: file.parent.name
        for wing in ("drawn", "sources")
        for file in (PACKAGE / wing).glob("*.py")
        if "\ndef build(" in file.read_text(encoding="utf-8")
    }
    if name not in known:
        raise PekaError(f"source {name!r} is unknown; there are {', '.join(sorted(known))}")
    return importlib.import_module(f"peka_core.{known[name]}.{name}")


def kinds_of(values: dict, group: str) -> tuple[dict, bool]:
    """Options that a profile's source or teacher takes, name -> declared type, and whether it takes others too (`**options`).

    Args:
        values: of a profile; `source` and `teacher` are read.
    """
    if group == "source_options":
        function = source_of(values["source"]).build
    else:
        from ..teachers import TEACHERS

        if values["teacher"] not in list(TEACHERS):
            raise PekaError(
                f"teacher {values['teacher']!r} is unknown; there are {', '.join(TEACHERS)}"
            )
        function = TEACHERS[values["teacher"]].__init__
    _, *parameters = inspect.signature(
        function
    ).parameters.values()  # the first is the run's cohort, or self
    kinds, open_ended = options_of(function), any(p.kind is p.VAR_KEYWORD for p in parameters)
    kinds = {p.name: kinds[p.name] for p in parameters if p.kind is not p.VAR_KEYWORD}
    return kinds | {
        own: kinds[name]
        for own, name in OWN_NAMES.items()
        if group == "source_options" and name in kinds
    }, open_ended


def with_paths(values: dict, folder: Path) -> dict:
    """The options of source and teacher, those that are paths made absolute: they are relative to `folder`.

    A path is what is declared so. HEST's `index` is a name inside the mirror, unless it starts with `~`, `./` or `../`.
    """

    def place(name, value, kind):
        is_path = Path in typing.get_args(kind) or (
            name == "index" and str(value).startswith(("~", "./", "../"))
        )
        return (
            str(absolute(folder / Path(value).expanduser()))
            if is_path and value and isinstance(value, (str, Path))
            else value
        )

    kinds = {group: kinds_of(values, group)[0] for group in OPTION_GROUPS}
    return {
        group: {
            name: place(name, value, kinds[group].get(name))
            for name, value in values[group].items()
        }
        for group in OPTION_GROUPS
    }


def checked_options(values: dict, group: str) -> dict:
    """The options of a profile's source or teacher, each in its declared type and range.

    Raises:
        PekaError: a name that it does not take, or a value that does not fit.
    """
    (kinds, open_ended), options = kinds_of(values, group), values[group]
    who = f"{group.split('_')[0]} {values[group.split('_')[0]]}"
    if (unknown := set(options) - set(kinds)) and not open_ended:
        raise PekaError(
            f"{who} has no option {', '.join(sorted(map(str, unknown)))}; known: {', '.join(kinds)}"
        )
    found = {
        name: fitted(value, kinds.get(name, typing.Any), name) for name, value in options.items()
    }
    for name, value in found.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            within(value, OPTION_RANGES.get(OWN_NAMES.get(name, name)), name)
    if group == "teacher_options":
        from ..teachers import load_teacher

        load_teacher(values["teacher"], **found)  # has checks of its own
    return found


def check_complete(profile) -> None:
    """Refuse a profile whose source needs an option that is not given, as the cohort directory of `own`.

    Raises:
        PekaError: says how to give it.
    """
    _, *parameters = inspect.signature(source_of(profile.source).build).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if lacking := [name for name in needed if profile.source_options.get(name, "") == ""]:
        flag = (
            "--cohort DIR"
            if lacking == ["path"]
            else " ".join(f"-p {name}=..." for name in lacking)
        )
        raise PekaError(
            f"profile {profile.name} needs {' and '.join(lacking)} of its source {profile.source}: peka run {profile.name} {flag}; in a "
            f'notebook overrides = {{"{lacking[0]}": ...}} and run = "NAME"'
        )


def checked_rung(entry, recipe: Recipe, group: str) -> Rung | str:
    """An entry of `ladder` or `others`: a predictor's name, or a rung; its recipe is checked on top of the profile's.

    Raises:
        PekaError: no rung, or a value that does not fit.
    """
    if isinstance(entry, str) and group == "ladder":
        return entry
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe", {}), dict):
        raise PekaError(
            f"{group}: expected entries such as {{name: mine, method: bat, recipe: {{k: 8}}}}, not {entry!r}"
        )
    with told_of(f"{group}, {entry.get('name') or entry}"):
        rung = read_rung(entry)
        rung = Rung(**fitted_fields(rung, RANGES))
        if rung.space not in SPACES:
            raise PekaError(f"space {rung.space!r} is unknown: {' or '.join(SPACES)}")
        changed = rung.change(recipe)
    return dataclasses.replace(
        rung, recipe=tuple((key, getattr(changed, key)) for key, _ in rung.recipe)
    )


def check_methods(name: str, methods: tuple[str, ...]) -> None:
    """Refuse methods that train nothing; the frozen encoder is scored without being asked for."""
    if odd := set(methods) - (set(METHODS) - {"none"}):
        known = ", ".join(method for method in METHODS if method != "none")
        raise PekaError(
            f"{name}: {', '.join(sorted(odd))} cannot be aligned; there are {known} (the frozen encoder is always scored)"
        )


def check_worlds(values: dict) -> None:
    """Refuse a small study (`few`) or a second world of a source that cannot draw them, and a half-described one."""
    few, (kinds, open_ended) = values["few"], kinds_of(values, "source_options")
    if few and set(few) != {"patients", "epochs"}:
        raise PekaError(f"few must be empty or have patients and epochs, not {few!r}")
    for name, check in (("patients", FROM_2), ("epochs", FROM_1)):
        within(fitted(few.get(name), int | None, f"few: {name}"), check, f"few: {name}")
    for name, asked, needs in (
        ("few", few, "patients"),
        ("cues_off_splits", values["cues_off_splits"], "hidden"),
    ):
        if asked and needs not in kinds and not open_ended:
            raise PekaError(
                f"{name}: source {values['source']} cannot draw another cohort; set {name}: {'{}' if few == asked else 0}"
            )
