"""Values that users write: YAML with plain numbers, declared types and ranges, absolute paths."""

import contextlib
import dataclasses
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path

import yaml

from .errors import PekaError

WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
    dict: "a mapping", type(None): "nothing",
}  # fmt: skip
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")  # of YAML 1.1


class Yaml(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2: `1e-4` is a number, `010` is ten and `1:30` is text.

    A name that occurs twice in a mapping is an error.
    """

    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag not in NUMBER_TAGS]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        """A mapping whose names are all different."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is written twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
Yaml.add_implicit_resolver("!whole", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
Yaml.add_implicit_resolver("!number", FLOAT, list("-+.0123456789"))
Yaml.add_constructor("!whole", lambda loader, node: int(loader.construct_scalar(node)))
Yaml.add_constructor("!number", lambda loader, node: float(loader.construct_scalar(node)))


def read_yaml(text: str, name: str | Path, expected: str):
    """Read YAML.

    Args:
        name: name of the file or option, for the message.
        expected: what the text should contain, for the message.

    Raises:
        PekaError: the text is not YAML; the message has the number of the line if it is known.
    """
    try:
        return yaml.load(text, Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise PekaError(f"{name}{line}: {why}; expected {expected}. Correct it there.") from error


def read_mapping(path: Path, expected: str) -> dict:
    """Read a YAML file that contains a mapping.

    Raises:
        PekaError: the file cannot be read, or is not UTF-8, YAML or a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PekaError(
            f"{path}: cannot be read ({error.strerror}); expected {expected}. "
            "Correct the path or its permissions."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PekaError(
            f"{path}, line {line}: this is not UTF-8; expected {expected}. Save it as UTF-8 text."
        ) from error
    values = read_yaml(text, path, expected)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise PekaError(
            f"{path}, line 1: {found}; expected {expected}. Write one `name: value` on each line."
        )
    return {str(key): value for key, value in values.items()}


@contextlib.contextmanager
def prefixed_errors(name: str | Path):
    """Put a name in front of the message of each PekaError."""
    try:
        yield
    except PekaError as error:
        raise PekaError(f"{name}: {error}") from None


def absolute(path: str | Path) -> Path:
    """A path with `~` expanded that means the same from every working directory."""
    return Path(os.path.expanduser(path)).absolute()


def pairs_of(items: list[str], option: str) -> dict[str, str]:
    """`["a=1"]` -> `{"a": "1"}`.

    Raises:
        PekaError: an item is no NAME=VALUE.
    """
    if bad := [item for item in items if not item.partition("=")[0].strip() or "=" not in item]:
        raise PekaError(f"{option} takes NAME=VALUE, not {bad[0]!r}")
    return dict(item.split("=", 1) for item in items)


def weights_of(items: list[str]) -> dict[str, str]:
    """The paths of `--weights ENCODER=PATH`, by encoder.

    Raises:
        PekaError: an item is no ENCODER=PATH, or its path is empty.
    """
    pairs = pairs_of(items, "--weights")
    if empty := [name for name, path in pairs.items() if not path]:
        raise PekaError(f"--weights takes ENCODER=PATH, not '{empty[0]}='")
    return pairs


def fitted(value, kind, name: str):
    """Return a value in its declared type.

    A whole number may be given for a number and a list for a tuple; nothing else is converted.

    Args:
        kind: an annotation, such as `int`, `tuple[str, ...]` or `str | Path | None`. Values of
            other annotations than these are returned as they are.
        name: name of the value in the message.

    Raises:
        PekaError: the value has another type, or is a number that is not finite.
    """
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    choices = typing.get_args(kind) if is_union else (kind,)
    for choice in choices:
        if (result := _as(value, choice, name)) is not _UNFIT:
            return result
    wanted = " or ".join(_words(choice) for choice in choices)
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    raise PekaError(f"{name} must be {wanted}, not {'nothing' if value is None else text}")


_UNFIT = object()


def _as(value, kind, name: str):
    """The value as one plain kind, or `_UNFIT`."""
    origin = typing.get_origin(kind) or kind
    if origin in (tuple, Iterable) and isinstance(value, (list, tuple)):
        return _items(value, kind, origin, name)
    if kind in (int, float):
        number = Integral if kind is int else Real
        fits = isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
        return kind(value) if fits else _UNFIT
    if origin is Iterable:
        return value if isinstance(value, str) else _UNFIT
    if origin in (bool, str, dict, Path, type(None)) or dataclasses.is_dataclass(origin):
        return value if isinstance(value, origin) else _UNFIT
    return _UNFIT if origin is tuple else value


def _items(values, kind, origin, name: str):
    """The members of a list in their declared types, as a tuple if a tuple is declared."""
    inner = typing.get_args(kind)
    if origin is tuple and inner and inner[-1] is not ...:
        if len(values) != len(inner):
            return _UNFIT
    else:
        inner = (inner[:1] or (typing.Any,)) * len(values)
    pairs = zip(values, inner, strict=True)
    members = [fitted(value, part, f"each of {name}") for value, part in pairs]
    return tuple(members) if origin is tuple else members


def _words(kind) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (tuple, Iterable):
        return f"a list of {_words(inner[0])}, in [ ]" if inner else "a list, in [ ]"
    return WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def fitted_fields(record, checks: Mapping[str, tuple[str, Callable]], name: str = "") -> dict:
    """The fields of a dataclass object in their declared types and ranges.

    Args:
        checks: field -> (what is allowed in words, the test).
        name: the message has this text before a field's name.

    Raises:
        PekaError: a field does not fit; the message names the first such field.
    """
    kinds, result = typing.get_type_hints(type(record)), {}
    for field in dataclasses.fields(record):
        value = fitted(getattr(record, field.name), kinds[field.name], name + field.name)
        result[field.name] = within(value, checks.get(field.name), name + field.name)
    return result


def within(value, check: tuple[str, Callable] | None, name: str):
    """Return a value that passes its check; None passes every check.

    Raises:
        PekaError: the value does not pass.
    """
    if check and value is not None and not check[1](value):
        raise PekaError(f"{name} must be {check[0]}, not {value!r}")
    return value


def options_of(function: Callable) -> dict[str, object]:
    """Name -> declared type of a function's parameters, by annotation or by the default's type."""
    hints = typing.get_type_hints(function)
    return {
        p.name: hints.get(p.name, typing.Any if p.default in (None, p.empty) else type(p.default))
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    }
