"""A profile says what one `peka run NAME` does: cohort, encoder, teacher, methods and recipe."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .files import PekaError
from .ladder import Rung, read_rung
from .recipe import RECIPES, Recipe

FOLDER = Path(__file__).parent / "profiles"
GROUPS = ("source_options", "teacher_options", "recipe")


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

    @property
    def encoders(self) -> list[str]:
        """Every encoder that a run needs, its own first."""
        return list(dict.fromkeys([self.encoder, *(rung.encoder for rung in self.others if rung.encoder)]))

    def alignments(self, splits: list[str], off: list[str] = ()) -> list[tuple[Rung | str, str, str]]:
        """(method or rung, split, world) of everything that this profile aligns, chapter 3's list.

        Args:
            splits: names of the cohort's own splits; off: those of world `off`.
        """
        planned = [(method, split, "on") for method in self.methods for split in splits]
        planned += [(method, "all", "on") for method in self.all_methods]
        planned += [(method, "spots/0", "on") for method in self.all_methods[:1] if self.scope_effect]
        planned += [(rung, "all", "on") for rung in self.others if rung.method != "none"]
        planned += [("bat", split, "off") for split in list(off)[: self.cues_off_splits]]
        return planned + [(method, split, "few") for method in self.all_methods[:1] for split in ("all", "spots/0") if self.few]


def profile_names() -> list[str]:
    """Names of the bundled profiles."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str, overrides: dict | None = None) -> Profile:
    """Read `profiles/<name>.yaml` and change some of its values.

    Args:
        name: a bundled profile, or the path of a YAML file of the same form.
        overrides: `{"epochs": 2, "sections": ["C2", "C3"]}`; nested values by their own name.

    Raises:
        PekaError: unknown profile or unknown value name; the message lists the known ones.
    """
    path = _path_of(name)
    values = read_values(path)
    overrides = dict(overrides or {})
    for key, value in overrides.items():
        _home(values, key)[key] = value
    values["recipe"] = _recipe(values["recipe"])
    values["ladder"] = tuple(rung if isinstance(rung, str) else read_rung(rung) for rung in values.get("ladder", ()))
    values["others"] = tuple(read_rung(rung) for rung in values.get("others", ()))
    values["methods"], values["all_methods"] = tuple(values["methods"]), tuple(values["all_methods"])
    return Profile(name=path.stem, overrides=overrides, **values)


def read_values(path: Path) -> dict:
    """Values of a profile file, on top of those of the profile that its `base` names; of `recipe` each value by itself.

    `recipe: {like: as_run, block: 16}` starts from one of `recipe.RECIPES` instead.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = values.pop("base", "")
    under = read_values(path.parent / base if str(base).endswith((".yaml", ".yml")) else _path_of(base)) if base else {}
    recipe = values.get("recipe") or {}
    known = {f.name for f in dataclasses.fields(Profile)} - {"name", "overrides"}
    if unknown := set(values) - known:
        raise PekaError(f"{path}: unknown value {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    if (like := recipe.pop("like", "")) and like not in RECIPES:
        raise PekaError(f"{path}: recipe like {like!r} is unknown; there are {', '.join(RECIPES)}")
    start = dataclasses.asdict(RECIPES[like]) if like else under.get("recipe", {})
    return under | values | {"recipe": start | recipe}


def override_names(values: dict) -> list[str]:
    """Flat names that `-p name=value` may set in a profile's `values`."""
    flat = [key for key in values if key not in (*GROUPS, "title", "source")]
    return sorted(flat + [key for group in GROUPS for key in values[group]])


def _path_of(name: str) -> Path:
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        raise PekaError(f"no profile {name!r}; known: {', '.join(profile_names())}, or the path of a YAML file")
    return path


def _home(values: dict, key: str) -> dict:
    """The mapping inside `values` that holds `key`."""
    if key not in override_names(values):
        raise PekaError(f"unknown parameter {key!r}; known: {', '.join(override_names(values))}")
    return next((values[group] for group in GROUPS if key in values[group]), values)


def _recipe(values: dict) -> Recipe:
    known = {f.name for f in dataclasses.fields(Recipe)}
    if unknown := set(values) - known:
        raise PekaError(f"unknown recipe value {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    return Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
