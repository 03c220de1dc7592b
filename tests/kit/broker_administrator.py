"""What only an administrator of the broker may do, and the package therefore never asks."""

from __future__ import annotations

import json
from typing import Final

from rmq_txn.remoting.client import RemotingClient

_UPDATE_TOPIC: Final = 17
_UPDATE_BROKER_CONFIG: Final = 25
_UPDATE_GROUP: Final = 200


class BrokerAdministrator(RemotingClient):
    """Orders that change one broker."""

    def configure(self, lines: dict[str, str]) -> None:
        """Change its configuration, at once and in its file."""
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        self._tell(_UPDATE_BROKER_CONFIG, {}, "to change its configuration", text.encode())

    def permit(self, topic: str, permission: int) -> None:
        """Set what may be done with a topic of four queues: 2 is write, 4 is read, 6 is both."""
        fields = {
            "topic": topic,
            "defaultTopic": "TBW102",
            "readQueueNums": "4",
            "writeQueueNums": "4",
            "perm": str(permission),
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": "false",
        }
        self._tell(_UPDATE_TOPIC, fields, "to change a topic")

    def set_group(self, group: str, **settings: object) -> None:
        """Create a consumer group or change it: `retryMaxTimes`, `consumeEnable`."""
        body = json.dumps({"groupName": group, **settings}).encode()
        self._tell(_UPDATE_GROUP, {}, "to change a group", body)
