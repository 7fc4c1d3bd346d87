"""The part that Flower plays: messages, clients and the weighted mean; imports Flower.

Flower's ``FedAvg`` runs the rounds and averages, a ``ClientApp`` answers at each site, and what
goes between them are Flower's messages. They are handed over in this process by ``LocalGrid``, in
the place of Flower's SuperLink and network.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from normscan.errors import NormscanError
from normscan.federated.client import Client


def _arrays(values: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def client_app(client: Client) -> ClientApp:
    """Return the Flower app of a site: trains when asked to, and finishes its detector."""

    def take(message: Message) -> None:
        client.receive({k: v.numpy() for k, v in message.content["arrays"].items()})

    def train(message: Message, context: Context) -> Message:
        take(message)
        config = message.content["config"]
        client.train(int(config["server-round"]) - 1, int(config["local-epochs"]))
        content = {"arrays": _arrays(client.send())}
        content |= {"metrics": MetricRecord({"num-examples": client.samples})}
        return Message(RecordDict(content), reply_to=message)

    def finish(message: Message, context: Context) -> Message:
        take(message)
        client.finish()
        return Message(RecordDict(), reply_to=message)

    app = ClientApp()
    app.train()(train)
    app.query()(finish)
    return app


class LocalGrid(Grid):
    """Hands Flower's messages to the sites' apps in this process, one site after the other.

    Args:
        apps: by number of the site.
        names: of the sites, for errors.
        report: called with the number of messages answered.

    Attributes:
        received: bytes of the records that each site got.
        sent: bytes of the records that each site sent.
    """

    def __init__(
        self, apps: Sequence[ClientApp], names: Sequence[str], report: Callable[[int], None]
    ) -> None:
        self.apps, self.names, self.report = apps, names, report
        self.contexts = [
            Context(1, number, {}, RecordDict(), {}) for number in range(1, len(apps) + 1)
        ]
        self.received, self.sent = [0] * len(apps), [0] * len(apps)
        self.answered = 0

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self.apps) + 1)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        # Flower shuffles the sites; sums of floats depend on their order.
        for message in sorted(messages, key=lambda m: int(m.metadata.dst_node_id)):
            site = message.metadata.dst_node_id - 1
            self.received[site] += _size(message)
            try:
                reply = self.apps[site](message, self.contexts[site])
            except Exception as error:  # whatever happens at a site, no mean goes on without it
                reason = " ".join(str(error).split())[:500] or type(error).__name__
                raise NormscanError(f"{self.names[site]} failed: {reason}") from error
            self.sent[site] += _size(reply)
            self.answered += 1
            self.report(self.answered)
            replies.append(reply)
        return replies

    # The rest of Flower's interface, for messages that are fetched later: never used here.

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *values: Any, **options: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def _size(message: Message) -> int:
    records = message.content.values()
    return sum(int(record.count_bytes()) for record in records)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's log and its draws from Python's global random state to itself."""
    logger, state = logging.getLogger("flwr"), random.getstate()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)


def run_rounds(grid: LocalGrid, first: dict[str, np.ndarray], rounds: int, epochs: int) -> None:
    """Run all rounds, then give every site the last mean and let it finish.

    Args:
        grid: to the sites.
        first: shared parameters that all sites begin with.
        rounds: of training and averaging.
        epochs: local passes in each.

    Raises:
        NormscanError: a site failed.
    """
    n = len(grid.apps)
    # Flower's own processes set this before they make a message.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    with _quiet():
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=n, min_available_nodes=n)
        config = ConfigRecord({"local-epochs": epochs})
        result = strategy.start(grid, _arrays(first), rounds, train_config=config)
        content = RecordDict({"arrays": result.arrays})
        grid.send_and_receive(
            [Message(content, number, MessageType.QUERY) for number in grid.get_node_ids()]
        )
