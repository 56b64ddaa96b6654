"""The histogram, against the one of prometheus_client."""

import random

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from sidecar.inference.histogram import SECONDS, Histogram


def test_buckets_are_those_of_the_reference() -> None:
    ours, registry = Histogram(), CollectorRegistry()
    reference = Reference("x", "x", buckets=SECONDS, registry=registry)
    randomly = random.Random(7)
    for value in (0.0, 0.001, 1.0, 30.0, 30.1, 1e9, *(randomly.expovariate(5) for _ in range(1000))):
        ours.observe(value)
        reference.observe(value)
    samples = next(iter(registry.collect())).samples
    theirs = [(sample.labels["le"], sample.value) for sample in samples if sample.name == "x_bucket"]
    assert ours.buckets() == theirs
    assert ours.sum == next(sample.value for sample in samples if sample.name == "x_sum")


def test_many_at_once() -> None:
    sizes = Histogram((1, 2, 4))
    sizes.observe(1, 10)
    sizes.observe(3, 2)
    sizes.observe(9)
    assert sizes.buckets() == [("1.0", 10), ("2.0", 10), ("4.0", 12), ("+Inf", 13)]
    assert sizes.sum == 10 + 6 + 9
