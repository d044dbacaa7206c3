"""A profile says what one `peka run NAME` does: cohort, encoder, teacher, methods and recipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PekaError
from ..recipe import RECIPES, Recipe
from ..values import absolute, fitted, fitted_fields, read_mapping, told_of
from .profile_checks import (
    OPTION_GROUPS,
    RANGES,
    check_methods,
    check_worlds,
    checked_options,
    checked_rung,
    with_paths,
)
from .rungs import Rung, first_adapter

FOLDER = Path(__file__).parent / "profiles"
GROUPS = (*OPTION_GROUPS, "recipe")
FORM = "a profile, names and values as in peka_core/profiles"


@dataclass(frozen=True)
class Profile:
    """Values of one profile file, overrides applied.

    Attributes:
        source: module of `peka_core.sources` that builds the cohort, with `source_options`.
        cues_off_splits: on how many splits to align in the demo's second world, whose counts ignore the hidden cues.
        few: `patients` and `epochs` of the demo's small study, in which an alignment can learn spots by heart;
            empty where there is none.
        methods: adapter methods aligned on each split's training spots (scope nested).
        all_methods: methods aligned once on all spots (scope all).
        scope_effect: whether the first of `all_methods` is also aligned on the training spots of `spots/0`, to compare with scope all.
        lessons: whether chapter 3 trains small examples in the open.
        others: rungs that are scored beside them under the paper's protocols: other encoders, frozen or aligned on all spots.
        ladder: what `peka ladder` compares with the frozen encoder: rungs, and names of predictors.
        umap: whether chapter 5 draws UMAPs.
        overrides: what was changed from the file, by flat name.
        file: the bundled profile's name, or the absolute path of the file, to open it again from anywhere.
    """

    name: str
    title: str
    source: str
    source_options: dict
    cues_off_splits: int
    few: dict
    encoder: str
    teacher: str
    teacher_options: dict
    methods: tuple[str, ...]
    all_methods: tuple[str, ...]
    recipe: Recipe
    seed: int
    umap: bool = True
    scope_effect: bool = True
    lessons: bool = True
    others: tuple = ()
    ladder: tuple = ()
    overrides: dict = field(default_factory=dict)
    file: str = ""

    @property
    def encoders(self) -> list[str]:
        """Every encoder that a run needs, its own first."""
        return list(
            dict.fromkeys([self.encoder, *(rung.encoder for rung in self.others if rung.encoder)])
        )

    def alignments(
        self, splits: list[str], off: list[str] = ()
    ) -> list[tuple[Rung | str, str, str]]:
        """(method or rung, split, world) of everything that this profile aligns, chapter 3's list.

        Args:
            splits: names of the cohort's own splits; off: those of world `off`.
        """
        own = [first_adapter(self.all_methods)] if first_adapter(self.all_methods) else []
        planned = [(method, split, "on") for method in self.methods for split in splits]
        planned += [(method, "all", "on") for method in self.all_methods]
        planned += [(method, "spots/0", "on") for method in own if self.scope_effect]
        planned += [(rung, "all", "on") for rung in self.others if rung.method != "none"]
        planned += [("bat", split, "off") for split in list(off)[: self.cues_off_splits]]
        return planned + [
            (method, split, "few") for method in own for split in ("all", "spots/0") if self.few
        ]


def profile_names() -> list[str]:
    """Names of the bundled profiles."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str, overrides: dict | None = None) -> Profile:
    """Read `profiles/<name>.yaml` and change some of its values; each is checked for its declared type and range.

    Paths in a file are relative to its folder, those in `overrides` to the working directory, and `~` is the home folder; in the
    profile they are absolute.

    Args:
        name: a bundled profile, or the path of a YAML file of the same form.
        overrides: `{"epochs": 2, "sections": ["C2", "C3"]}`; nested values by their own name.

    Raises:
        PekaError: unknown profile or value name (the message lists the known ones), a file that holds no profile, or a value that
            does not fit.
    """
    path = _path_of(name)
    values = read_values(path)
    overrides = _overrides(overrides or {}, values)
    for key, value in overrides.items():
        _home(values, key)[key] = value
    with told_of(f"profile {path.stem}"):
        file = path.stem if path.parent == FOLDER else str(path)
        return _checked(values, {"name": path.stem, "overrides": overrides, "file": file})


def read_values(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """Values of a profile file, on top of those of the profile that its `base` names; of `recipe` each value by itself.

    `recipe: {like: as_run, block: 16}` starts from one of `recipe.RECIPES` instead.

    Args:
        above: the files whose `base` led here.

    Raises:
        PekaError: a file that holds no profile, or whose base leads back to it.
    """
    if path.resolve() in above:
        raise PekaError(
            f"{path}: its base leads back to it; expected a profile that stands on another. Name another base."
        )
    values = read_mapping(path, FORM)
    base = values.pop("base", None) or ""
    with told_of(f"{path}: base"):
        under_path = _path_of(base, path.parent) if base else None
    under = read_values(under_path, (*above, path.resolve())) if base else {}
    for group in (*GROUPS, "few"):
        values[group] = (
            _mapping(values[group], f"{path}: {group}")
            if group in values
            else under.get(group, {})
            if group != "recipe"
            else {}
        )
    known = {
        f.name: f
        for f in dataclasses.fields(Profile)
        if f.name not in ("name", "overrides", "file")
    }
    if unknown := set(values) - set(known):
        raise PekaError(
            f"{path}: unknown value {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    recipe = dict(values["recipe"])
    if (like := recipe.pop("like", "")) and like not in list(RECIPES):
        raise PekaError(f"{path}: recipe like {like!r} is unknown; there are {', '.join(RECIPES)}")
    start = dataclasses.asdict(RECIPES[like]) if like else under.get("recipe", {})
    values = under | values | {"recipe": start | recipe}
    needed = [
        name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING
    ]
    if lacking := [name for name in needed if name not in values]:
        raise PekaError(
            f"{path}: {', '.join(lacking)} missing; expected {FORM}, or a line `base: demo` for what it does not say"
        )
    with told_of(path):
        return values | with_paths(values, path.parent)


def override_names(values: dict) -> list[str]:
    """Flat names that `-p name=value` may set in a profile's `values`."""
    flat = [key for key in values if key not in (*GROUPS, "title", "source")]
    return sorted(flat + [key for group in GROUPS for key in values[group]])


def _path_of(name: str, folder: Path = Path()) -> Path:
    """The file of a profile: a bundled one's, or at a path that may be relative to `folder`."""
    if str(name).endswith((".yaml", ".yml")):
        path = absolute(folder / Path(str(name)).expanduser())
    else:
        path = FOLDER / f"{name}.yaml" if str(name) in profile_names() else Path()
    if not path.is_file():
        raise PekaError(
            f"no profile {name!r}; known: {', '.join(profile_names())}, or the path of a YAML file"
        )
    return path


def _mapping(values, name: str) -> dict:
    """A mapping, or nothing written where one belongs."""
    return fitted({} if values is None else values, dict, name)


def _overrides(overrides: dict, values: dict) -> dict:
    """Changed values by flat name, paths among them absolute."""
    if not isinstance(overrides, Mapping):
        raise PekaError(f'overrides must be a mapping such as {{"epochs": 2}}, not {overrides!r}')
    for key in overrides:
        _home(values, key)
    options = {
        group: {key: value for key, value in overrides.items() if key in values[group]}
        for group in OPTION_GROUPS
    }
    placed = with_paths(values | options, Path.cwd())
    return dict(overrides) | placed["source_options"] | placed["teacher_options"]


def _home(values: dict, key: str) -> dict:
    """The mapping inside `values` that holds `key`."""
    if key not in override_names(values):
        raise PekaError(f"unknown parameter {key!r}; known: {', '.join(override_names(values))}")
    return next((values[group] for group in GROUPS if key in values[group]), values)


def _checked(values: dict, facts: dict) -> Profile:
    """The profile of some values, each in its declared type and range; `facts`: where they are from."""
    recipe = _recipe(values["recipe"])
    options = {group: checked_options(values, group) for group in OPTION_GROUPS}
    rungs = {
        group: tuple(
            checked_rung(entry, recipe, group)
            for entry in fitted(values.get(group, ()), tuple, group)
        )
        for group in ("ladder", "others")
    }
    profile = Profile(**values | options | rungs | facts | {"recipe": recipe})
    profile = Profile(**fitted_fields(profile, RANGES))
    check_methods("methods", profile.methods)
    check_methods("all_methods", profile.all_methods)
    check_worlds(vars(profile))
    return profile


def _recipe(values: dict) -> Recipe:
    known = {f.name for f in dataclasses.fields(Recipe)}
    if unknown := set(values) - known:
        raise PekaError(
            f"unknown recipe value {', '.join(sorted(map(str, unknown)))}; known: {', '.join(sorted(known))}"
        )
    return Recipe(**values)
