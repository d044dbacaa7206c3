"""A profile says what one `peka run NAME` does: cohort, encoder, teacher, methods and recipe."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import PekaError
from ..common.typed_values import absolute, fitted, fitted_fields, prefixed_errors, read_mapping
from ..drawn.worlds import OFF, OWN, World, few_patients
from ..recipe import RECIPES, Recipe
from .profile_checks import (
    OPTION_GROUPS,
    RANGES,
    check_chapters,
    check_methods,
    checked_options,
    checked_rung,
    own_encoders,
    with_paths,
    with_teacher,
)
from .rungs import Rung, first_adapter

FOLDER = Path(__file__).parent / "profiles"
GROUPS = (*OPTION_GROUPS, "recipe", "chapters")
FORM = "a profile, with names and values as in peka_core/runner/profiles"


@dataclass(frozen=True)
class Chapters:
    """What single chapters show beside the study.

    Attributes:
        cues_off_splits: on how many splits to align in the demo's second world, whose counts
            ignore the hidden cues.
        few: `patients` and `epochs` of the demo's small study, in which an alignment overfits;
            empty for no such study.
        scope_effect: whether the first of `all_methods` is also aligned on the training spots of
            `spots/0`, to compare both scopes.
        lessons: whether chapter 3 trains small examples.
        umap: whether chapter 5 draws UMAPs.
        gene: the gene that all chapters follow (`studies/story.py`); empty for the target gene that
            varies most.
    """

    cues_off_splits: int = 0
    few: dict = field(default_factory=dict)
    scope_effect: bool = False
    lessons: bool = False
    umap: bool = True
    gene: str = ""


@dataclass(frozen=True)
class Profile:
    """The values of one profile file, with the overrides applied.

    Attributes:
        source: module of `peka_core.sources` or `peka_core.drawn` that builds the cohort.
        source_options: arguments of that module's `build`.
        methods: adapter methods that are aligned on each split's training spots (scope nested).
        all_methods: methods that are aligned once, on all spots (scope all).
        compile: whether a network is compiled: `auto`, `always` or `never`. Results change by
            rounding only, so it is not part of a unit's name.
        others: further rungs to score under the paper's protocols: other encoders, frozen or
            aligned on all spots.
        ladder: what `peka ladder` compares with the frozen encoder: rungs and names of predictors.
        overrides: what was changed from the file, by flat name.
        file: name of a bundled profile, or absolute path of a file.
    """

    name: str
    title: str
    source: str
    source_options: dict
    encoder: str
    teacher: str
    teacher_options: dict
    methods: tuple[str, ...]
    all_methods: tuple[str, ...]
    recipe: Recipe
    seed: int
    chapters: Chapters
    compile: str = "auto"
    others: tuple = ()
    ladder: tuple = ()
    overrides: dict = field(default_factory=dict)
    file: str = ""

    @property
    def encoders(self) -> list[str]:
        """Every encoder that a run needs; the profile's own comes first."""
        others = [rung.encoder for rung in self.others if rung.encoder]
        return list(dict.fromkeys([self.encoder, *others]))

    def alignments(
        self, splits: Sequence[str], off: Sequence[str] = ()
    ) -> list[tuple[Rung | str, str, World]]:
        """(method or rung, split, world) of everything that chapter 3 aligns.

        Args:
            splits: names of the cohort's own splits.
            off: names of the splits of world `off`.
        """
        shown, first = self.chapters, first_adapter(self.all_methods)
        plan: list[tuple[Rung | str, str, World]]
        plan = [(method, split, OWN) for method in self.methods for split in splits]
        plan += [(method, "all", OWN) for method in self.all_methods]
        plan += [(first, "spots/0", OWN)] if first and shown.scope_effect else []
        plan += [(rung, "all", OWN) for rung in self.others if rung.method != "none"]
        plan += [("bat", split, OFF) for split in list(off)[: shown.cues_off_splits]]
        return plan + [
            (first, s, few_patients(shown.few)) for s in ("all", "spots/0") if first and shown.few
        ]


# the fields that a profile's file sets
FIELDS = [f for f in dataclasses.fields(Profile) if f.name not in ("name", "overrides", "file")]


@functools.cache
def bundled() -> dict[str, tuple[Path, str, str]]:
    """Name of each bundled profile -> its file, cohort and variant; "" if it has none.

    A file may list `cohorts` and `variants`: `hest.yaml` holds `hest-kidney`, `hest-kidney-full` …
    """
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        values = read_mapping(path, FORM)
        for cohort in values.get("cohorts", [""]):
            for variant in ("", *values.get("variants", {})):
                name = "-".join(filter(None, (path.stem, cohort, variant)))
                found[name] = path, cohort, variant
    return found


def profile_titles() -> dict[str, str]:
    """Name -> title of the bundled profiles; cohorts of one file share a name with `COHORT`."""
    titles = {}
    for name, (path, cohort, _) in sorted(bundled().items()):
        known = " / ".join(c for p, c, v in bundled().values() if p == path and not v)
        shown = name.replace(f"-{cohort}", "-COHORT") if cohort else name
        titles[shown] = read_values(name)["title"].replace("{cohort}", known)
    return titles


def load_profile(name: str, overrides: dict | None = None) -> Profile:
    """Read a profile and change some of its values; each is checked for its type and range.

    Paths in a file are relative to its folder, those in `overrides` to the working directory, and
    `~` is the home folder. In the profile they are absolute. Another `teacher` starts with its own
    options at their defaults, and `recipe` names one of `RECIPES`, which replaces the whole recipe;
    other changes come on top.

    Args:
        name: a bundled profile, or the path of a YAML file of the same form.
        overrides: `{"epochs": 2, "sections": ["C2", "C3"]}`; nested values by their own name.

    Raises:
        PekaError: the profile, the recipe or the name of a value is unknown, the file holds no
            profile, or a value does not fit.
    """
    path, _, _ = _find(name)
    values = read_values(name)
    if isinstance(overrides, Mapping) and "teacher" in overrides:
        values = with_teacher(values, overrides["teacher"])
    if isinstance(overrides, Mapping) and "recipe" in overrides:
        _refuse_unknown([overrides["recipe"]], RECIPES, "recipe")
        values = values | {"recipe": dataclasses.asdict(RECIPES[overrides["recipe"]])}
    overrides = _overrides(overrides or {}, values)
    for key, value in overrides.items():
        if key != "recipe":
            _home(values, key)[key] = value
    label, file = (name, name) if name in bundled() else (path.stem, str(path))
    with prefixed_errors(f"profile {label}"):
        return _checked(values, {"name": label, "overrides": overrides, "file": file})


def read_values(name: str, folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict:
    """Values of a profile, on top of those of the profile that its `base` names.

    The options of source and teacher replace those of the base as a whole, and the values in
    `recipe` and `chapters` one by one. `recipe: {like: as_run, block: 16}` starts from one of
    `recipe.RECIPES` instead of the base.

    Args:
        name: as in `load_profile`; a path may be relative to `folder`.
        above: the files whose `base` lines led to this one.

    Raises:
        PekaError: the file holds no profile, or its base leads back to it.
    """
    path, cohort, variant = _find(name, folder)
    if path.resolve() in above:
        raise PekaError(f"{path}: its base leads back to this file. Name another base.")
    values = read_mapping(path, FORM)
    base, variants = values.pop("base", None) or "", {}
    if cohort:  # of the file that holds several cohorts; a copy of it is no profile
        variants = values.pop("variants")
        del values["cohorts"]
        values["source_options"] = values["source_options"] | {"cohort": cohort}
    with prefixed_errors(f"{path}: base"):
        above = (*above, path.resolve())
        under = read_values(base, path.parent, above) if base else {}
    with prefixed_errors(path):
        merged = _merged(_merged(under, values), variants.get(variant, {}))
        needed = [f.name for f in FIELDS if f.default is f.default_factory]
        if missing := [name for name in needed if name not in merged]:
            raise PekaError(
                f"{', '.join(missing)} missing; expected {FORM}. Add these values, or the line "
                "`base: demo`, which takes them from the profile demo."
            )
        return merged | with_paths(merged, path.parent)


def _merged(under: dict, values: dict) -> dict:
    """Values on top of others; see `read_values`."""
    _refuse_unknown(values, [f.name for f in FIELDS], "value")
    merged = under | values
    for group in GROUPS:
        given, start = values.get(group), under.get(group, {})
        given = dict(fitted({} if given is None else given, dict, group))
        if group == "recipe" and (like := given.pop("like", "")):
            _refuse_unknown([like], RECIPES, "recipe after `like:`,")
            start = dataclasses.asdict(RECIPES[like])
        merged[group] = given if group in OPTION_GROUPS and group in values else start | given
    return merged


def _refuse_unknown(names, known, what: str) -> None:
    if unknown := sorted(repr(name) for name in names if name not in list(known)):
        raise PekaError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def override_names(values: dict) -> list[str]:
    """The names that `-p name=value` may set in a profile's `values`."""
    flat = [key for key in values if key == "recipe" or key not in (*GROUPS, "title", "source")]
    return sorted(flat + [key for group in GROUPS for key in values[group]])


def _find(name: str, folder: Path = Path()) -> tuple[Path, str, str]:
    """File, cohort and variant of a profile: a bundled one, or a path relative to `folder`."""
    if name in bundled():
        return bundled()[name]
    path = absolute(folder / Path(str(name)).expanduser())
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        known = ", ".join(sorted(bundled()))
        raise PekaError(f"no profile {name!r}; there are {known}. Or give the path of a YAML file.")
    return path, "", ""


def _overrides(overrides: dict, values: dict) -> dict:
    """The changed values by name, with absolute paths."""
    if not isinstance(overrides, Mapping):
        raise PekaError(f'overrides must be a mapping such as {{"epochs": 2}}, not {overrides!r}')
    for key in overrides:
        _home(values, key)
    options = {
        group: {key: value for key, value in overrides.items() if key in values[group]}
        for group in OPTION_GROUPS
    }
    placed = with_paths(values | options, Path.cwd())
    options = placed["source_options"] | placed["teacher_options"]
    return dict(overrides) | options | own_encoders(overrides, Path.cwd())


def _home(values: dict, key: str) -> dict:
    """The mapping inside `values` that holds `key`."""
    _refuse_unknown([key], override_names(values), "parameter")
    return next((values[group] for group in GROUPS if key in values[group]), values)


def _checked(values: dict, origin: dict) -> Profile:
    """The profile of some values, each in its declared type and range.

    Args:
        origin: name, overrides and file of the profile.
    """
    for group, kind in (("recipe", Recipe), ("chapters", Chapters)):
        names = [f.name for f in dataclasses.fields(kind)]
        _refuse_unknown(values[group], names, f"{group} value")
    recipe, chapters = Recipe(**values["recipe"]), Chapters(**values["chapters"])
    chapters = Chapters(**fitted_fields(chapters, RANGES))
    made = {group: checked_options(values, group) for group in OPTION_GROUPS}
    for group in ("ladder", "others"):
        rungs = fitted(values.get(group, ()), tuple, group)
        made[group] = tuple(checked_rung(entry, recipe, group) for entry in rungs)
    profile = Profile(**values | made | origin | {"recipe": recipe, "chapters": chapters})
    profile = Profile(**fitted_fields(profile, RANGES))
    for name in ("methods", "all_methods"):
        check_methods(name, getattr(profile, name))
    check_chapters(chapters, values)
    cohort = str(profile.source_options.get("cohort", ""))
    return dataclasses.replace(profile, title=profile.title.replace("{cohort}", cohort))
