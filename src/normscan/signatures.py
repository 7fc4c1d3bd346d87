"""Arguments that many methods share: told once, shown in every signature and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

# What an argument of this name means where a method's own docstring says nothing else.
DESCRIPTIONS = {
    "dims": "spatial axes, 2 or 3.",
    "channels": "of the image.",
    "size": "pixels along each axis.",
    "width": "channels of the first convolution.",
    "latent": "numbers in the code.",
    "dropout": "share of the features that are dropped in training.",
    "weights": "``hub``, ``pip:NAME``, ``random``, or the path of a state dict.",
}


@dataclass(frozen=True)
class Options:
    """A group of arguments that functions take as ``**group`` and that their signatures list.

    Attributes:
        types: type of each argument.
        defaults: value of each argument.
        descriptions: what each argument means.
    """

    types: Mapping[str, Any]
    defaults: Mapping[str, Any]
    descriptions: Mapping[str, str]

    def __call__(self, **defaults: Any) -> Options:
        """Return the group with other defaults.

        Raises:
            ValueError: no such argument.
        """
        unknown = set(defaults) - set(self.types)
        if unknown:
            raise ValueError(f"the shared options have no {sorted(unknown)}")
        return Options(self.types, {**self.defaults, **defaults}, self.descriptions)

    def __or__(self, other: Options) -> Options:
        """Return both groups as one; where they share a name, the other's counts."""
        return Options(
            {**self.types, **other.types},
            {**self.defaults, **other.defaults},
            {**self.descriptions, **other.descriptions},
        )


def described(build: Callable[..., Any]) -> dict[str, str]:
    """Return the ``Args`` of a Google docstring by name, each as one line."""
    _, _, section = (inspect.getdoc(build) or "").partition("\nArgs:\n")
    result: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+): *(.*)", line)
        if start:
            name = start[1]
            result[name] = start[2]
        elif name:
            result[name] = f"{result[name]} {line.strip()}".strip()
    return result


def completed(build: Callable[..., Any], options: Options | None) -> Callable[..., Any]:
    """Return a function with shared arguments in its signature and all of them in its docstring.

    Args:
        build: a function with named arguments and, where it shares some, ``**options``.
        options: the shared arguments, or None.

    Raises:
        ValueError: ``**options`` without a group or the reverse, or an argument that nobody
            describes.
    """
    hints = get_type_hints(build)
    own = inspect.signature(build).parameters
    keyword = inspect.Parameter.VAR_KEYWORD
    if any(p.kind == keyword for p in own.values()) != (options is not None):
        raise ValueError(f"{build.__name__}: **options and their group come together")
    parameters = [p.replace(annotation=hints[n]) for n, p in own.items() if p.kind != keyword]
    shared: dict[str, Any] = {}
    known = {**DESCRIPTIONS, **(options.descriptions if options else {}), **described(build)}
    if options is not None:
        shared = {n: v for n, v in options.defaults.items() if n not in own}
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters += [
            inspect.Parameter(n, kind, default=v, annotation=options.types[n])
            for n, v in shared.items()
        ]
    lacking = [p.name for p in parameters if p.name not in known]
    if lacking:
        raise ValueError(f"{build.__name__}: nothing describes the argument {lacking[0]}")

    names = {p.name for p in parameters}

    def complete(*values: Any, **arguments: Any) -> Any:
        if not names.issuperset(arguments):  # ``**options`` would swallow it
            raise TypeError(f"{build.__name__} has no argument {sorted(set(arguments) - names)}")
        return build(*values, **{**shared, **arguments})

    text, _, section = (inspect.getdoc(build) or "").partition("\nArgs:\n")
    rest = re.split(r"\n(?=\S)", section, maxsplit=1)[1:]
    lines = [f"    {p.name}: {known[p.name]}" for p in parameters]
    complete.__doc__ = "\n".join([f"{text.strip()}\n\nArgs:", *lines, *(f"\n{r}" for r in rest)])
    complete.__name__, complete.__qualname__ = build.__name__, build.__qualname__
    complete.__module__ = build.__module__
    complete.__annotations__ = {p.name: p.annotation for p in parameters} | {
        "return": hints.get("return", Any)
    }
    complete.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=hints.get("return", Any)
    )
    return complete
