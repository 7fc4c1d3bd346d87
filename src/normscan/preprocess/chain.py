"""Steps named in settings: read, checked, kept as plain values, run in order."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from normscan.errors import ArgumentError, nearest
from normscan.preprocess.steps import STEPS, Step, Working

Spec = str | Mapping[str, Any]


def load_steps() -> None:
    """Import the modules whose functions are the steps."""
    from normscan.preprocess import (  # noqa: F401  (they register)
        bias,
        brain,
        checks,
        colour,
        ct,
        fields,
        intensity,
        registration,
        spatial,
    )


def parse_steps(specs: Iterable[Spec]) -> list[tuple[Step, dict[str, Any]]]:
    """Read steps from settings.

    A step is its name (``"n4"``), its name and first argument (``"register=mni152"``), or a mapping
    of its name to its arguments (``{"register": {"to": "sri24"}}``).

    Raises:
        ArgumentError: unknown step or argument; the nearest name is given.
    """
    load_steps()
    parsed = []
    for spec in specs:
        name, arguments = _read(spec)
        if name not in STEPS:
            raise ArgumentError(
                f"there is no preprocessing step '{name}'.{nearest(name, STEPS)} "
                f"Known: {', '.join(sorted(STEPS))}."
            )
        known = list(inspect.signature(STEPS[name].function).parameters)[1:]
        if None in arguments:
            if not known:
                raise ArgumentError(f"the preprocessing step '{name}' takes no argument.")
            arguments = {known[0]: arguments[None]}
        for argument in arguments:
            if argument not in known:
                raise ArgumentError(
                    f"the preprocessing step '{name}' has no argument '{argument}'."
                    f"{nearest(str(argument), known)} It has: {', '.join(known) or 'none'}."
                )
        parsed.append((STEPS[name], arguments))
    return parsed


def _read(spec: Spec) -> tuple[str, dict[Any, Any]]:
    import yaml

    if isinstance(spec, str):
        name, given, value = spec.partition("=")
        return name.strip(), {None: yaml.safe_load(value)} if given else {}
    if len(spec) != 1:
        raise ArgumentError(f"a preprocessing step is one name and its arguments, not {spec!r}.")
    name, arguments = next(iter(spec.items()))
    return str(name), dict(arguments or {})


def run_steps(specs: Iterable[Spec], working: Working) -> Working:
    """Take a scan through steps, in order.

    Raises:
        ArgumentError: see ``parse_steps``.
        ScanError: a step can't work on this scan.
    """
    for found, arguments in parse_steps(specs):
        working = found.function(working, **arguments)
    return working


def plain_steps(specs: Iterable[Any]) -> tuple[Any, ...]:
    """Check steps and return them as JSON would: a name, or a name with its arguments.

    Raises:
        ArgumentError: unknown step or argument, an argument that is missing or of another type.
    """
    import yaml

    plain: list[Any] = []
    for spec in specs:
        try:
            ((found, arguments),) = parse_steps([spec])
        except (TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ArgumentError(
                f"preprocess.steps: {spec!r} is no step. Write a name such as 'n4', 'resample=1.0', "
                "or {'resample': {'spacing': 1.0}}."
            ) from error
        values = {name: _plain(found, name, value) for name, value in arguments.items()}
        parameters = list(inspect.signature(found.function).parameters.values())[1:]
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in values]
        if missing and found.learn is None:
            raise ArgumentError(
                f"the preprocessing step '{found.name}' needs a value for '{missing[0]}'."
            )
        plain.append({found.name: values} if values else found.name)
    return tuple(plain)


def _plain(found: Step, name: str, value: Any) -> Any:
    """Return the argument of a step as JSON would, of the type that it is declared with."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        kind = get_type_hints(found.function).get(name, Any)
        value = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ArgumentError(
            f"the preprocessing step '{found.name}': {name} is {value!r}: {reason}."
        ) from error
    except (NameError, PydanticSchemaGenerationError):
        pass  # a type that can't be looked up here: the step checks it
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the preprocessing step '{found.name}': {name} is {value!r}, which can't be saved. "
            "Use numbers, text and lists."
        ) from error
