"""The node as a whole, and its parts one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

from normscan.dicom import check_highdicom
from normscan.errors import ArgumentError
from normscan.node.config import Config, Login
from normscan.node.process import Child, Stop, alone, command_of, supervise
from normscan.node.pull import pull
from normscan.node.receive import listen
from normscan.node.send import deliver
from normscan.node.store import Store

log = logging.getLogger("normscan.node")
NEEDED = {
    "receive": ("pynetdicom",),
    "send": ("pynetdicom",),
    "pull": ("dicomweb_client", "requests"),
    "web": ("fastapi", "uvicorn", "prometheus_client"),
}


def parts_of(config: Config) -> dict[str, Callable[[Store, Stop], None]]:
    """Return the parts that a configuration asks for."""
    parts: dict[str, Callable[[Store, Stop], None]] = {"score": _score, "send": deliver}
    if config.dicom is not None:
        parts["receive"] = listen
    if config.web is not None:
        parts["web"] = _web
    if config.sources:
        parts["pull"] = pull
    return parts


def _score(store: Store, stop: Stop) -> None:
    from normscan.node.score import work  # what scores imports torch, the other parts don't

    work(store, stop)


def _web(store: Store, stop: Stop) -> None:
    from normscan.node.web import serve

    serve(store, stop)


def check(config: Config) -> None:
    """Refuse what can't work before anything listens.

    Raises:
        ArgumentError: a package that isn't installed, a rule whose detector isn't there.
    """
    check_highdicom()
    for part in parts_of(config):
        for package in NEEDED.get(part, ()):
            if find_spec(package) is None:
                raise ArgumentError(
                    f"the node needs {package}. Install it: pip install normscan[serve]."
                )
    if config.web is not None:
        config.web.tokens()
    for rule in config.rules:
        if not (rule.detector / "detector.json").is_file():
            raise ArgumentError(
                f"rule '{rule.name}': {rule.detector} is no run folder of a detector. Name the folder "
                "that `normscan fit --out` wrote."
            )
    for end in (config.dicom, *config.destinations, *config.sources):
        if isinstance(end, Login):
            end.login()
        elif end is not None and end.tls is not None:
            end.tls.context(listening=False)


def run(path: str, part: str = "all") -> None:
    """Run the node, or one of its parts, until told to stop.

    Args:
        path: of ``node.toml``.
        part: ``all``, or one of ``parts_of``.

    Raises:
        NormscanError: a configuration that can't work, a folder that another node holds.
    """
    config = Config.read(path)
    check(config)
    _log()
    store, stop, parts = Store(config), Stop().on_signals(), parts_of(config)
    if part == "all":
        _all(path, store, stop, list(parts))
        return
    if part not in parts:
        raise ArgumentError(f"there is no part '{part}' in {path}: {', '.join(parts)}.")
    parts[part](store, stop)


def _all(path: str, store: Store, stop: Stop, names: list[str]) -> None:
    commands = {name: command_of(path, name) for name in names if name != "score"}
    for number in range(1, store.config.scorers + 1):
        commands[f"score {number}"] = command_of(path, "score")

    def died(child: Child) -> None:
        assert child.process is not None
        store.queue.release(child.process.pid)
        store.clear_making(child.process.pid)
        store.queue.count("restarted", child.name.split()[0])
        if child.name == "receive":  # senders need time to go on with what they began
            store.queue.postpone(store.config.quiet)

    with alone(store.folder):
        store.queue.release()  # of the processes of a node that was killed
        store.clear_making()
        store.note("started", parts=list(commands))
        supervise(commands, stop, died)
        store.note("stopped")


def _log() -> None:
    """Log to stderr; libraries stay silent, since their words may hold values of headers."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger().setLevel(logging.CRITICAL)
    log.setLevel(logging.INFO)
    for name in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
