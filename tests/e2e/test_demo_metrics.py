"""GET /metrics of both demo services, read as Prometheus reads it."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.services import DemoService
from tests.e2e.conftest import DELIVERY_SECONDS, SEEDS, Demo
from tests.kit.wait import until

pytestmark = pytest.mark.servers


def samples(service: DemoService, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each series of a name."""
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(service.metrics())
        for sample in family.samples
        if sample.name == name
    ]


def total(service: DemoService, name: str, **labels: str) -> float:
    """Return the sum of the series with these labels."""
    return sum(value for told, value in samples(service, name) if labels.items() <= told.items())


def test_both_services_count_what_they_do_and_say_how_they_are(demo: Demo, unique: str) -> None:
    """A transfer whose message is delivered twice: one verdict, two deliveries, one of them skipped."""
    acks = {"rmq_txn_answer": "ack"}

    def verdicts() -> float:
        return total(demo.account, "rmq_txn_verdicts_total", rmq_txn_cause="local transaction")

    def counted() -> list[float]:
        return [
            total(demo.account, "messaging_client_sent_messages_total"),
            total(demo.points, "rmq_txn_consumer_duplicates_total"),
            total(demo.points, "rmq_txn_redeliveries_total"),
        ]

    before, verdicts_before = counted(), verdicts()
    assert demo.points.post("/faults", {"fault": "deliver_twice", "transfer_id": unique}).status == 200
    assert demo.transfer(unique).status == 201

    # At least: what the tests before broke is published again, and delivered again, in these very moments.
    def grown() -> bool:
        return all(after >= count + 1 for after, count in zip(counted(), before, strict=True))

    until(grown, "one more of each", DELIVERY_SECONDS)
    assert verdicts() == verdicts_before + 1
    assert total(demo.points, "messaging_client_consumed_messages_total", **acks) >= 1
    for service, part in ((demo.account, "producer"), (demo.points, "consumer")):
        until(lambda s=service, p=part: total(s, f"rmq_txn_{p}_registered") == 1, "a look at the brokers", 30)
        assert total(service, f"rmq_txn_{part}_database") == 1
        told = {labels["part"]: value for labels, value in samples(service, "demo_health")}
        assert told == {"state": 1, "registered": 1, "broker": 1, "database": 1}


def test_a_transfer_is_one_trace_in_the_file_that_demo_spans_names(demo: Demo, unique: str) -> None:
    """From the request to the delivery in the other service."""
    texts = [spans.read_text(encoding="utf-8") for spans in demo.spans]
    assert demo.transfer(unique).status == 201
    demo.wait_for_points(unique)

    def trace() -> dict[str, str]:
        found = [
            json.loads(line)
            for path, before in zip(demo.spans, texts, strict=True)
            for line in path.read_text(encoding="utf-8")[len(before) :].splitlines()
        ]
        sends = [
            span for span in found if unique in span["attributes"].get("messaging.rocketmq.message.keys", ())
        ]
        whole = {span["context"]["trace_id"] for span in sends}
        return {
            span["name"]: span["resource"]["attributes"]["service.name"]
            for span in found
            if span["context"]["trace_id"] in whole
        }

    expected = {
        "POST /transfers": "account-service",
        "transaction account-service": "account-service",
        "send transfer": "account-service",
        "local transaction": "account-service",
        "process transfer": "points-service",
    }
    until(lambda: trace() == expected, "all spans of the transfer", DELIVERY_SECONDS)


def test_metrics_name_no_user_and_no_secret(demo: Demo) -> None:
    """It names no user, no transfer, no secret."""
    for service in demo.services:
        text = service.metrics()
        assert not [user for user in SEEDS if user in text]
        assert "mysql://" not in text
