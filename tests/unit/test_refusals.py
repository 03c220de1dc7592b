"""Each refusal of a broker has a sentence of its own."""

from __future__ import annotations

import pytest

from rmq_txn import RocketMQ
from rmq_txn.errors import BrokerUnavailableError
from rmq_txn.message import Message, Outbound
from rmq_txn.remoting.client import RemotingClient
from rmq_txn.remoting.refusals import sentence
from rmq_txn.remoting.server import RemotingError
from tests.unit.test_remoting import answer, closed_address, says, server

CODES = (1, 2, 4, 10, 11, 12, 13, 14, 16, 17, 215, 501)


def message() -> Outbound:
    return Message("transfer", {"n": 1}, key="order-1").outbound(txn_id="0" * 32, position=0, owner="g@d")


def test_no_two_codes_of_a_send_share_a_sentence() -> None:
    """Each keeps code and remark; one that nobody knows is told as it is."""
    cluster, address = RocketMQ(closed_address()), closed_address()
    told = {code: sentence(cluster, address, message(), RemotingError(code, "the remark")) for code in CODES}
    for code, words in told.items():
        assert words.startswith(f"broker {address} "), words
        assert words.endswith(f"(code {code}: the remark)")
    assert len({words.split(" (code ")[0] for words in told.values()}) == len(CODES)
    unknown = sentence(cluster, address, message(), RemotingError(999, "new"))
    assert unknown == f"broker {address} refuses the message (code 999: new)"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            b"rejectTransactionMessage=true\n",
            "takes no transactional messages (rejectTransactionMessage=true",
        ),
        (b"brokerPermission=4\n", "takes no writes at all (brokerPermission"),
        (
            b"x=1\n",
            "refuses access_key and secret_key, or their permission to write topic 'transfer' (code 16",
        ),
    ],
)
def test_what_forbids_a_message_is_looked_up(config: bytes, said: str) -> None:
    """One code, several causes: the configuration of the broker tells them apart."""
    with server(says(answer(config))) as address:
        words = sentence(RocketMQ(closed_address()), address, message(), RemotingError(16, "forbidden"))
    assert said in words


@pytest.mark.parametrize(("ask", "whom"), [("cluster_info", "name server"), ("broker_config", "broker")])
def test_the_port_of_another_server_is_named(ask: str, whom: str) -> None:
    """A broker given as name server answers: it does not know the question."""
    with (
        server(says(answer(code=3, remark="request type 106 not supported"))) as address,
        pytest.raises(BrokerUnavailableError, match=f"{address} is no {whom}: .* listens on port"),
    ):
        getattr(RemotingClient(address), ask)()
