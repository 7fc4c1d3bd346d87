"""How a user may write options, and how they are brought to what the parser takes."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from normscan.errors import ArgumentError, nearest
from normscan.identity import without_folders

# What other programs call a command.
SYNONYMS = {
    "train": "fit", "learn": "fit", "infer": "predict", "inference": "predict", "score": "predict",
    "segment": "predict", "apply": "predict", "eval": "evaluate", "test": "evaluate",
    "validate": "evaluate", "metrics": "evaluate", "report": "evaluate", "models": "methods",
    "list": "methods", "info": "cohort", "inspect": "cohort",
    "dataset": "datasets", "download": "datasets", "simulate": "phantom", "groups": "subgroups",
}  # fmt: skip

YES_OR_NO = {
    "true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false",
}  # fmt: skip

_NUMBERS = re.compile(r"[-+.,\deE\s]+")
_PAIRS = re.compile(r"\w+=[^{\[]*")
_OWN_COMMAS = ("target", "structures", "further")  # commas in one part what belongs to a scan


def command_line() -> str:
    """Return the command that was given, as a shell takes it again; of paths the last part alone.

    Folders are often named after people, and what this is written to travels: ``--keep-names``.
    """
    return " ".join(["normscan", *(shlex.quote(without_folders(a)) for a in sys.argv[1:])])


def spelled(arguments: list[str], known: Iterable[str], function: Callable[..., Any]) -> list[str]:
    """Return the arguments as the parser takes them.

    Dashes stand for underscores (``--batch-size``), ``--resume`` for ``--resume=true``, ``yes`` and
    ``on`` for ``true``, ``a,b`` for a list and ``key=value,key=value`` for a table. Beginnings of
    options are refused: which one was meant may change with the next version.

    Args:
        arguments: as given.
        known: options of the parser.
        function: of the command, whose annotations say what an option takes.

    Raises:
        ArgumentError: an option that isn't known.
    """
    known = set(known)
    kinds = {
        f"--{p.name}": str(p.annotation) for p in inspect.signature(function).parameters.values()
    }
    return list(_spelled(arguments, known, kinds))


def _spelled(arguments: list[str], known: set[str], kinds: dict[str, str]) -> Iterator[str]:
    rest = iter([*arguments, ""])
    following = next(rest)
    for after in rest:
        text, following = following, after
        if not text.startswith("--") or text == "--":
            yield text
            continue
        name, equals, value = text.partition("=")
        name = _option(name, known)
        kind = kinds.get(name, "")
        if kind in ("bool", "<class 'bool'>"):
            said = value if equals else after
            yield f"{name}={YES_OR_NO.get(said.lower(), said if equals else 'true')}"
            if not equals and said.lower() in YES_OR_NO:
                following = next(rest)
        elif equals:
            yield f"{name}={_value(value, name, kind)}"
        elif kind and after and not after.startswith("--"):
            yield f"{name}={_value(after, name, kind)}"
            following = next(rest)
        else:
            yield name


def _option(name: str, known: set[str]) -> str:
    plain = "--" + name[2:].replace("-", "_")
    # ``--preprocess.size`` reaches into a table, ``--wrappers+`` adds to a list.
    bare = re.split(r"[.+]", plain, maxsplit=1)[0]
    for chosen, there in ((name, name), (plain, plain), (plain, bare)):
        if there in known:
            return chosen
    raise ArgumentError(f"unknown option {name}.{nearest(plain, known)}")


def _value(value: str, name: str, kind: str) -> str:
    """Return a list as ``[a,b]`` and a table as JSON; what has brackets already stays."""
    if value.startswith(("[", "{")):
        return value
    if name[2:] in _OWN_COMMAS:
        return json.dumps([value]) if kind.startswith("list[str") else value
    if kind.startswith("dict") and _PAIRS.fullmatch(value):
        pairs = (part.partition("=") for part in value.split(","))
        return json.dumps({key.strip(): _plain(text.strip()) for key, _, text in pairs})
    of_text = kind.startswith(("list[str", "tuple[str"))
    if of_text or (kind.startswith(("tuple", "list")) and _NUMBERS.fullmatch(value)):
        parts = [part.strip() for part in value.split(",")]
        return json.dumps(parts) if of_text else f"[{', '.join(parts)}]"
    return value


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
