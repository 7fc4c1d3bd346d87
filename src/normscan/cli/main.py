"""The command line: one command, sub-commands made from the signatures in ``normscan.cli.commands``.

Only the standard library is imported before a sub-command is known, so that ``normscan --help``
answers at once.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from normscan.cli.outlet import outlets
from normscan.cli.spelling import SYNONYMS, spelled
from normscan.errors import ArgumentError, NormscanError, nearest, short_of_memory
from normscan.identity import keeping_names
from normscan.version import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from normscan.registry import Card

COMMANDS = {
    "fit": "train a method on healthy scans: normscan fit METHOD --cohort C --out RUN",
    "tune": "search a method's arguments: normscan tune METHOD --cohort C --space width=16,32 --out F",
    "federate": "train at several sites: normscan federate METHOD --cohort C --out RUN",
    "predict": "score scans and write their maps: normscan predict RUN SCAN...",
    "check": "is a scan of the kind a detector knows? normscan check RUN SCAN...",
    "view": "findings in the browser, with a reader's verdicts: normscan view RUN",
    "evaluate": "metrics and a report on a cohort: normscan evaluate RUN --cohort C",
    "calibrate": "thresholds from another site's healthy scans: normscan calibrate RUN --cohort C",
    "regions": "healthy scores of anatomical regions: normscan regions RUN --cohort C",
    "update": "let new healthy scans join a trained detector: normscan update RUN --cohort C",
    "merge": "what the detectors of several sites know, in one: normscan merge RUN RUN --out MERGED",
    "sign": "say who made a detector: normscan sign RUN --key FILE",
    "verify": "and see whether that holds: normscan verify RUN --key FILE.pub",
    "export": "a detector as one file for others: normscan export RUN --to onnx",
    "push": "a detector into a repository of a Hugging Face hub: normscan push RUN OWNER/NAME",
    "pull": "a detector from one, checked: normscan pull OWNER/NAME --out FOLDER",
    "compare": "test evaluated detectors against each other: normscan compare RUN RUN...",
    "subgroups": "an evaluation by site, sex, age: normscan subgroups RUN --column site",
    "benchmark": "compare methods under a protocol: normscan benchmark PROTOCOL --methods a,b",
    "mood": "a folder in, maps or numbers out: normscan mood pixel INPUT OUTPUT --run RUN",
    "limits": "the smallest and faintest lesion found: normscan limits RUN --cohort C",
    "pitfalls": "what a residual can't find: normscan pitfalls --cohort C --out FOLDER",
    "tasks": "list the kinds of artificial anomalies, with pictures",
    "synthesise": "plant them: normscan synthesise COHORT --task nsa --out FOLDER",
    "preprocess": "prepare a cohort: normscan preprocess COHORT --preset P --out FOLDER",
    "steps": "list the preprocessing steps and presets",
    "methods": "list the methods",
    "cohort": "say what is in a table or folder: normscan cohort PATH",
    "bids": "write a BIDS data set as a cohort table: normscan bids ROOT --out cohort.csv",
    "tiles": "cut whole-slide images into tiles of tissue: normscan tiles SLIDE --out FOLDER",
    "datasets": "public data sets: list, show ID, prepare ID --root FOLDER, download ID",
    "node": "score what a PACS sends, results back: normscan node --config node.toml",
    "mcp": "tools for an assistant, by the Model Context Protocol: normscan mcp --root FOLDER",
    "skill": "what an assistant should know to use these commands",
    "phantom": "simulate a cohort with lesions: normscan phantom --out FOLDER",
    "demo": "the whole job on a simulated cohort",
}

HELP = """usage: normscan COMMAND ...

normscan learns what healthy looks like from healthy scans and shows what departs from it.

commands:
{commands}

--keep-names with any of them leaves names of scans and folders in what travels: detectors, commands.

`normscan COMMAND --help` explains a command, `normscan fit METHOD --help` a method.
Research use. Not for diagnosis.
"""

# The one argument of a command that needs no name.
POSITIONAL = {
    "predict": "run",
    "check": "run",
    "view": "run",
    "evaluate": "run",
    "calibrate": "run",
    "update": "run",
    "export": "run",
    "push": "run",
    "pull": "repo",
    "sign": "run",
    "verify": "run",
    "limits": "run",
    "regions": "run",
    "subgroups": "run",
    "cohort": "path",
    "preprocess": "cohort",
    "synthesise": "cohort",
    "bids": "path",
    "tiles": "path",
    "federate": "method",
    "tune": "method",
}

STOPPED = {
    "fit": "stopped. If the run folder is there, a checkpoint was written (one a minute), and --resume "
    "goes on from it; else the same command begins again.",
    "tune": "stopped. The trials that are done are kept; --resume goes on from there.",
    "demo": "stopped. It can't be gone on with: the same command begins again.",
    "benchmark": "stopped. The cells that are done are kept; the same command goes on from there.",
    "preprocess": "stopped. The scans that are done are kept; the same command goes on from there.",
    "limits": "stopped. The lesions that are done are kept; the same command goes on from there.",
}

USAGE_ERROR = 2
KEEP_NAMES = "--keep-names"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 some scans failed, 2 wrong input."""
    with outlets() as out:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        out.flush()
        if out.failure is not None:
            reason = out.failure.strerror or out.failure
            return fail(
                f"standard output: can't be written ({reason}). All else was done.", code or 2
            )
        return code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<12}{text}" for name, text in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"normscan {__version__}")
        return 0
    try:
        Path.cwd()
    except FileNotFoundError:  # libraries end the process over it, with words of their own
        return fail("the working directory was removed. Go to one that is there: cd.")
    name = arguments[0]
    if name not in COMMANDS:
        meant = SYNONYMS.get(name.lower())
        hint = f" It is called {meant}: {COMMANDS[meant]}." if meant else nearest(name, COMMANDS)
        return fail(f"there is no command '{name}'.{hint} See normscan --help.")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            kept = [text for text in arguments[1:] if text != KEEP_NAMES]
            with keeping_names(len(kept) + 1 < len(arguments)):
                return run(name, kept) or 0
    except NormscanError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail(STOPPED.get(name, "stopped."), 130)
    except OSError as error:
        # A full disk, a missing right: the system's reason says more than a traceback.
        return fail(f"{error.filename or name}: {error.strerror or error}.")
    except (MemoryError, RuntimeError, ImportError) as error:
        if not short_of_memory(error):
            raise
        said = "" if isinstance(error, ImportError) else str(error).strip().partition("\n")[0][:200]
        return fail(
            f"{name}: there is too little memory{f' ({said})' if said else ''}. Take smaller images or "
            "batches, fewer workers, or a larger machine."
        )


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
) -> None:
    """Print a warning of ours as one line for people, and leave out those of libraries."""
    glyph = str(message).startswith("Glyph")  # of a name in a picture; matplotlib draws a box
    if category is UserWarning and "normscan" in filename and not glyph:
        print(f"note: {message}", file=sys.stderr)


def fail(message: str, code: int = USAGE_ERROR) -> int:
    """Print an error on stderr and return its exit code."""
    print(f"normscan: error: {message}", file=sys.stderr)
    return code


def run(name: str, arguments: list[str]) -> int | None:
    """Parse the arguments of a command and call it; return its exit code, None for 0."""
    if (text := _at_once(name, arguments)) is not None:
        print(text)
        return 0
    from normscan.cli import commands

    function: Callable[..., Any] = getattr(commands, name)
    signature = commands.signature(name)
    card = None
    if name == "fit":
        card, arguments = _method(arguments)
        arguments = _gathered(arguments, "exclude")
    if name == "tune":
        arguments = _gathered(arguments, "space")
    parser = build_parser(name, signature, card, _preset(arguments))
    try:
        given = spelled(arguments, parser._option_string_actions, signature)
    except ArgumentError as error:
        return fail(f"{error} See {parser.prog} --help.")
    values = parser.parse_args(given)
    options = {k: v for k, v in vars(values).items() if card is None or k != "config"}
    if str(options.get("run", "")).startswith("hf:"):
        place = options["run"].removeprefix("hf:")
        return fail(f"fetch it first: normscan pull {place} --out FOLDER, then name that folder.")
    if card is not None:
        if options["preset"] != _preset(arguments):
            return fail(
                "a preset changes the defaults: give it on the command line, --preset NAME."
            )
        options = _split_method(options, card)
    code: int | None = function(**options)
    return code


def _at_once(name: str, arguments: list[str]) -> str | None:
    """Return what can be said of methods without importing them, or None."""
    asked = bool({"-h", "--help"} & set(arguments))
    if name == "methods" and set(arguments) <= {"--json", "--json=true"}:
        from normscan.cli import help

        return help.methods(bool(arguments))
    if name == "fit" and asked:
        from normscan.cli import help

        if arguments[0].startswith("-"):
            return help.method_list()
        return help.method_help(arguments[0], _preset(arguments))
    return None


def _method(arguments: list[str]) -> tuple[Card, list[str]]:
    """Take the method's id off the front."""
    from normscan import registry

    if not arguments or arguments[0].startswith("-"):
        raise NormscanError("name a method first: normscan fit METHOD --cohort C --out RUN.")
    return registry.card(arguments[0]), arguments[1:]


def _preset(arguments: list[str]) -> str:
    """Look the preset up before parsing: it changes the defaults."""
    for i, text in enumerate(arguments):
        if text.startswith("--preset="):
            return text.partition("=")[2]
        if text == "--preset" and i + 1 < len(arguments):
            return arguments[i + 1]
    return "paper"


def _gathered(arguments: list[str], name: str) -> list[str]:
    """Put the values of an option that may be given several times into one list."""
    rest, values, waiting = [], [], iter(arguments)
    for text in waiting:
        if text == f"--{name}":
            values.append(next(waiting, ""))
        elif text.startswith(f"--{name}="):
            values.append(text.partition("=")[2])
        else:
            rest.append(text)
    if not values:
        return rest
    if len(values) == 1 and values[0].startswith("["):
        return [*rest, f"--{name}={values[0]}"]
    return [*rest, f"--{name}={json.dumps(values)}"]


def build_parser(
    name: str, function: Callable[..., Any], card: Card | None = None, preset: str = "paper"
) -> ArgumentParser:
    """Return the parser of a command, made from its signature and, for fit, the method's."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    from normscan.registry import SETTLED

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise SystemExit(fail(_explain(str(message), self)))

    positional = POSITIONAL.get(name)
    prog = f"normscan {name}" + (f" {card.id}" if card else "")
    text = (function.__doc__ or "").partition("\n\n")[0]
    parser = Parser(prog=prog, description=text if card is None else card.summary)
    if card is not None:
        parser.add_argument(
            "--config", action=ActionConfigFile, help="YAML file with these options"
        )
    if positional:
        meanings = {
            "run": "run folder of the detector", "method": "id of the method",
            "repo": "OWNER/NAME or OWNER/NAME@REVISION",
        }  # fmt: skip
        parser.add_argument(positional, help=meanings.get(positional, "table or folder"))
    if name == "push":
        parser.add_argument("repo", help="OWNER/NAME or OWNER/NAME@BRANCH")
    if name in ("compare", "merge"):
        meant = "run or evaluation folders of one cohort" if name == "compare" else "run folders"
        parser.add_argument("runs", nargs="+", help=meant)
    if name in ("predict", "check"):
        parser.add_argument("scans", nargs="*", help="files, folders or patterns of scans")
    if name == "datasets":
        parser.add_argument(
            "action", nargs="?", default="list", help="list, show, prepare, download"
        )
        parser.add_argument("id", nargs="?", help="id of the data set")
    if name == "mood":
        for argument, text in (
            ("task", "pixel or sample"),
            ("input", "folder of scans"),
            ("output", "folder for results"),
        ):
            parser.add_argument(argument, help=text)
    if name == "node":
        parser.add_argument(
            "action", nargs="?", default="run", help="run, status, drift, purge, again"
        )
    if name == "benchmark":
        parser.add_argument("protocol", nargs="?", default="list", help="protocol, or list")
    skip = {positional, "scans", "runs", "progress"} - {None}
    if name == "push":
        skip |= {"repo"}
    if name == "mood":
        skip |= {"task", "input", "output"}
    if name == "benchmark":
        skip |= {"protocol"}
    if name in ("datasets", "node"):
        skip |= {"action", "id"}
    if card is not None:
        skip |= {"method", "arguments"}
    parser.add_function_arguments(function, skip=skip, as_positional=False)
    if card is not None:
        parser.add_function_arguments(card.build, as_group=True, skip=set(SETTLED))
        defaults = card.arguments(preset)
        parser.set_defaults({k: v for k, v in defaults.items() if k not in SETTLED})
    return parser


def _split_method(options: dict[str, Any], card: Card) -> dict[str, Any]:
    """Put the method's arguments that differ from its preset together."""
    defaults = card.arguments(options["preset"])
    given = {k: options.pop(k) for k in defaults if k in options}
    changed = {k: v for k, v in given.items() if v != defaults[k]}
    return {**options, "method": card.id, "arguments": changed}


def _explain(message: str, parser: ArgumentParser) -> str:
    """Shorten the parser's message and suggest the nearest option."""
    known = [o for action in parser._actions for o in action.option_strings]
    words = message.replace(",", " ").split()
    if "nrecognized arguments" in message or "not accepted" in message or "not valid" in message:
        wrong = next(
            (w.strip("'\"").partition("=")[0] for w in words if w.strip("'\"").startswith("--")), ""
        )
        if wrong and wrong not in known:
            return f"unknown option {wrong}.{nearest(wrong, known)} See {parser.prog} --help."
    message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split()))
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message).replace("typing.", "")
    return f"{message.rstrip('.')}. See {parser.prog} --help."


if __name__ == "__main__":
    sys.exit(main())
