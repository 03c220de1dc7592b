"""What is known of the image `apache/rocketmq`, and how its servers are started."""

from __future__ import annotations

from typing import Final

IMAGE: Final = "apache/rocketmq:5.4.0"
CONFIGURATION: Final = "/etc/rocketmq/broker.conf"
"""We put it there; the image has no such file."""

STORE: Final = "/home/rocketmq/store"
"""Not in the image. Its user (3000) can make it, unless a volume is mounted there, which is root's."""

NAME_SERVER_LOG, BROKER_LOG, PROXY_LOG = (
    f"/home/rocketmq/logs/rocketmqlogs/{name}.log" for name in ("namesrv", "broker", "proxy")
)
NAME_SERVER_PORT: Final = 9876
DIRECT_MEMORY: Final = "-XX:MaxDirectMemorySize=256m"


def java(
    main_class: str, *arguments: str, logging: str, heap_mb: tuple[int, int], more_options: str = ""
) -> str:
    """
    Return the words for a shell of the image that run a server.

    Java itself, not the image's scripts: how these choose the heap differs by version, and a shell
    around Java ignores SIGTERM. See docs/decisions/0024.

    Args:
        main_class: the class to run.
        arguments: its arguments.
        logging: the logging configuration, which all jars have one of.
        heap_mb: the heap at the beginning, and at most.
        more_options: more options of Java.
    """
    words = (
        f"java -Xms{heap_mb[0]}m -Xmx{heap_mb[1]}m {more_options}"
        f" -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError"
        f" -Drmq.logback.configurationFile={logging}"
        f' -cp "$ROCKETMQ_HOME/conf:$ROCKETMQ_HOME/lib/*" {main_class} {" ".join(arguments)}'
    )
    return " ".join(words.split())


def name_server() -> str:
    """Return the words that run the name server on NAME_SERVER_PORT."""
    main_class = "org.apache.rocketmq.namesrv.NamesrvStartup"
    return java(main_class, logging="rmq.namesrv.logback.xml", heap_mb=(64, 128))


def broker() -> str:
    """Return the words that run the broker with CONFIGURATION."""
    return java(
        *("org.apache.rocketmq.broker.BrokerStartup", "-c", CONFIGURATION),
        logging="rmq.broker.logback.xml",
        heap_mb=(256, 512),
        more_options=DIRECT_MEMORY,
    )
