"""Values from outside: YAML whose numbers are numbers, types and ranges by declaration, paths that stay what they are."""

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
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    type(None): "nothing",
    dict: "a mapping",
}


class Yaml(yaml.SafeLoader):
    """YAML with the numbers of version 1.2: `1e-4` is one, `010` is ten and `1:30` is text; a name twice in a mapping is an error."""

    yaml_implicit_resolvers = {
        first: [
            (tag, rule)
            for tag, rule in rules
            if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        """A mapping whose names are all different."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands here twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Yaml.add_implicit_resolver("!whole", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
Yaml.add_implicit_resolver(
    "!number", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)
Yaml.add_constructor("!whole", lambda loader, node: int(loader.construct_scalar(node)))
Yaml.add_constructor("!number", lambda loader, node: float(loader.construct_scalar(node)))


def read_yaml(text: str, name: str | Path, expected: str):
    """What a piece of YAML holds.

    Args:
        name: of the file or option, and `expected`: what should be in it, for the message.

    Raises:
        PekaError: no YAML; the message has the line where YAML knows it.
    """
    try:
        return yaml.load(text, Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise PekaError(f"{name}{line}: {why}; expected {expected}. Correct it there.") from error


def read_mapping(path: Path, expected: str) -> dict:
    """The mapping that a small YAML file holds.

    Raises:
        PekaError: the file cannot be read, is no UTF-8, no YAML, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PekaError(
            f"{path}: cannot be read ({error.strerror}); expected {expected}. Correct the path or its permissions."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PekaError(
            f"{path}, line {line}: not UTF-8; expected {expected}, as UTF-8 text. Save it so."
        ) from error
    values = read_yaml(text, path, expected)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise PekaError(
            f"{path}, line 1: {found}; expected {expected}. Write one `name: value` a line."
        )
    return {str(key): value for key, value in values.items()}


@contextlib.contextmanager
def told_of(name: str | Path):
    """Put what a value belongs to in front of the message about it."""
    try:
        yield
    except PekaError as error:
        raise PekaError(f"{name}: {error}") from None


def absolute(path: str | Path) -> Path:
    """A path as the user means it here and now: `~` expanded, and the same from any other working directory."""
    return Path(os.path.expanduser(path)).absolute()


def fitted(value, kind, name: str):
    """A value in its declared type: a whole number may stand for a number and a list for a tuple, nothing else for another.

    Args:
        kind: a type as annotations write it (`int`, `tuple[str, ...]`, `str | Path | None`); what it does not know it lets pass.
        name: what the message calls the value.

    Raises:
        PekaError: another type, or a number that is not finite.
    """
    choices = (
        typing.get_args(kind)
        if typing.get_origin(kind) in (typing.Union, types.UnionType)
        else (kind,)
    )
    for choice in choices:
        found = _as(value, choice, name)
        if found is not _UNFIT:
            return found
    raise PekaError(
        f"{name} must be {' or '.join(_words(choice) for choice in choices)}, not {_shown(value)}"
    )


_UNFIT = object()


def _as(value, kind, name: str):
    """The value as one plain kind, or `_UNFIT`."""
    origin = typing.get_origin(kind) or kind
    if origin in (tuple, Iterable) and isinstance(value, (list, tuple)):
        return _items(value, kind, origin, name)
    if (
        kind is float
        and isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if origin in (bool, str, dict, Path, type(None)) or dataclasses.is_dataclass(origin):
        return value if isinstance(value, origin) else _UNFIT
    if origin is Iterable:
        return value if isinstance(value, str) else _UNFIT
    return _UNFIT if origin in (int, float, tuple) else value


def _items(values, kind, origin, name: str):
    """Members of a list in their declared types; a declared tuple becomes one."""
    inner = typing.get_args(kind)
    if origin is tuple and inner and inner[-1] is not ...:
        if len(values) != len(inner):
            return _UNFIT
    else:
        inner = inner[:1] * len(values)
    members = (
        [fitted(value, part, f"each of {name}") for value, part in zip(values, inner, strict=True)]
        if inner
        else list(values)
    )
    return tuple(members) if origin is tuple else members


def _words(kind) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (tuple, Iterable):
        return f"a list of {_words(inner[0])}, in [ ]" if inner else "a list, in [ ]"
    return WORDS.get(origin, getattr(origin, "__name__", str(origin)))


def _shown(value) -> str:
    return (
        "nothing"
        if value is None
        else f"the text {value!r}"
        if isinstance(value, str)
        else repr(value)
    )


def fitted_fields(record, checks: Mapping[str, tuple[str, Callable]], name: str = "") -> dict:
    """Fields of a dataclass object in their declared types, checked for range.

    Args:
        checks: field -> (what is allowed in words, the test).
        name: what stands before a field's name in the message.

    Raises:
        PekaError: the first field that does not fit.
    """
    kinds = typing.get_type_hints(type(record))
    return {
        field.name: within(
            fitted(getattr(record, field.name), kinds[field.name], name + field.name),
            checks.get(field.name),
            name + field.name,
        )
        for field in dataclasses.fields(record)
    }


def within(value, check: tuple[str, Callable] | None, name: str):
    """The value, where it passes its check; None passes.

    Raises:
        PekaError: it does not; the message has the name and what is allowed.
    """
    if check and value is not None and not check[1](value):
        raise PekaError(f"{name} must be {check[0]}, not {value!r}")
    return value


def options_of(function: Callable) -> dict[str, object]:
    """Name -> declared type of a function's parameters, by annotation, else by the type of the default."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: hints.get(p.name, typing.Any if p.default in (None, p.empty) else type(p.default))
        for p in parameters
        if p.name != "self"
    }
