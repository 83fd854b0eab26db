"""Running a consumer: one process of `query-rewards stream`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bandit.settings.load import Settings
from feature_repo.connection import connect, translated
from feature_repo.keys import PARTITIONS, Keys
from training.claim import check_claim
from training.features.feature_store import online_rows
from training.stream.consumer import Consumer
from training.stream.metrics import StreamMetrics

_SOCKET_SECONDS = 10.0
_SAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """Results of a consumer: entries folded, repeated entries, records that cannot be counted."""

    entries: int
    duplicates: int
    dead_letters: int


def open_consumer(settings: Settings, metrics: StreamMetrics) -> Consumer:
    """A consumer of this deployment, ready to run.

    Raises: DependencyUnavailableError, FeatureStoreError, OtherDeploymentError.
    """
    client = connect(settings.redis_url, timeout=_SOCKET_SECONDS)
    with translated(settings.redis_url):
        check_claim(settings, client)
    return Consumer(settings, client, online_rows(settings, client), metrics)


def stream(
    settings: Settings,
    stopped: Callable[[], bool],
    *,
    once: bool = False,
    rebuild: bool = False,
    metrics_port: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Streamed:
    """Fold new entries.

    Args:
        settings: of the deployment.
        stopped: called after each step; true ends the stream.
        once: end when nothing waits any more.
        rebuild: first forget the online sums, so that the consumers rebuild them from the logs.
        metrics_port: to serve metrics on, on the loopback interface; 0 for none.
        say: called with a line of progress twice a second.

    Raises: DependencyUnavailableError when Redis is unavailable at the start; later the consumer waits for it.
    """
    metrics = StreamMetrics()
    counters = (metrics.entries, metrics.duplicates, metrics.dead_letters)
    before = [metrics.total(counter) for counter in counters]  # Feast lets prometheus_client keep the values of a whole process
    consumer = open_consumer(settings, metrics)
    if metrics_port:
        metrics.serve(metrics_port)
    if rebuild:
        with translated(settings.redis_url):
            keys = Keys.of(settings.feature_repo_path)
            connect(settings.redis_url).delete(*(keys.partition(number).state for number in range(PARTITIONS)))
    said = time.monotonic()

    def stop() -> bool:
        nonlocal said
        if time.monotonic() - said >= _SAY_SECONDS:
            said = time.monotonic()
            say(metrics.line())
        return stopped() or (once and metrics.idle)

    consumer.run(stop)
    entries, duplicates, dead = (metrics.total(counter) - start for counter, start in zip(counters, before, strict=True))
    return Streamed(entries=entries, duplicates=duplicates, dead_letters=dead)
