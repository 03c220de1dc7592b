"""How a RocketMQ cluster is reached: addresses, credentials, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rmq_txn.errors import BrokerUnavailableError, SettingsError
from rmq_txn.quantities import number_between
from rmq_txn.remoting.answers import Master, TopicRoute
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.server import TOPIC_NOT_EXIST, RemotingError
from rmq_txn.remoting.wire import Credentials, Line

NewGroupFrom: TypeAlias = Literal["earliest", "latest"]


@dataclass(frozen=True)
class ClusterSettings:
    """The fields of `RocketMQ`, which explains them, without what makes clients of them."""

    name_servers: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    send_timeout_seconds: float = 3.0
    cache_messages: int = 1_000
    new_group_from: NewGroupFrom = "earliest"
    extra_properties: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.addresses()
        if (self.access_key is None) != (self.secret_key is None):
            raise SettingsError("access_key and secret_key go together, one of them is missing")
        number_between("send_timeout_seconds", self.send_timeout_seconds, 0.1, 60)
        if self.new_group_from not in ("earliest", "latest"):
            raise SettingsError(
                f"new_group_from is {self.new_group_from!r}, allowed are 'earliest' and 'latest'"
            )
        number_between("cache_messages", self.cache_messages, 1, 10_000)

    def addresses(self) -> list[tuple[str, int]]:
        """Return the name servers as host and port."""
        found = []
        for part in self.name_servers.split(";"):
            host, colon, port = part.strip().rpartition(":")
            if not (colon and host and port.isdecimal() and 0 < int(port) < 65536) or set(host) & set(
                ":/,[] "
            ):
                raise SettingsError(
                    f"name server address is {part!r}, allowed is host:port, several separated by ';'"
                )
            found.append((host, int(port)))
        return found

    def ask(self, address: str, *, timeout_seconds: float = 3.0, line: Line | None = None) -> RemotingClient:
        """Return a client for questions to a broker or the name servers, with our credentials."""
        credentials = None
        if self.access_key is not None and self.secret_key is not None:
            credentials = Credentials(self.access_key, self.secret_key)
        return RemotingClient(address, timeout_seconds=timeout_seconds, credentials=credentials, line=line)

    def require_name_server(self) -> None:
        """Raise `BrokerUnavailableError` unless one name server answers within 3 s."""
        self.ask(self.name_servers).cluster_info()

    def route(self, topic: str) -> TopicRoute:
        """
        Ask the name servers where a topic lives; bounded to 3 s.

        The native client asks them too, but waits up to a minute for one that swallows questions.

        Raises:
            BrokerUnavailableError: no name server answers, or no live broker has the topic.
        """
        try:
            return self.ask(self.name_servers).topic_route(topic)
        except RemotingError as error:
            if error.code != TOPIC_NOT_EXIST:
                raise
            raise BrokerUnavailableError(
                f"no live broker has topic {topic!r}, says name server {self.name_servers}; "
                "create the topic, or start its broker"
            ) from error

    def masters(self, topic: str) -> tuple[Master, ...]:
        """
        Return each broker of a topic that has a master now.

        Only a master asks about half messages and keeps offsets. Errors as `route`.
        """
        return self.route(topic).masters()

    def every_master(self) -> tuple[list[tuple[str, RemotingClient]], list[str]]:
        """Return the brokers that have a master, by name, and a sentence for each that can't be asked."""
        try:
            known = self.ask(self.name_servers).cluster_info().brokers
        except (BrokerUnavailableError, RemotingError) as error:
            return [], [f"no broker was asked: {error}"]
        gaps: list[str] = []
        masters: list[tuple[str, RemotingClient]] = []
        for name, broker in sorted(known.items()):
            if broker.master_address is None:
                gaps.append(f"broker {name} has no master now, and was not asked")
            else:
                masters.append((name, self.ask(broker.master_address)))
        if not known:
            gaps.append("no broker is registered with the name server")
        return masters, gaps
