"""Prometheus metrics of the stream, base units, no user ids."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


class StreamMetrics:
    """Metrics of one consumer, in a registry of its own."""

    def __init__(self) -> None:
        """Nothing is served until `serve`."""
        self.registry = registry = CollectorRegistry()
        self.entries = Counter("qr_stream_entries_total", "Entries folded: events, decisions and reclusterings", registry=registry)
        self.duplicates = Counter("qr_stream_duplicates_total", "Entries that had been folded before", registry=registry)
        self.dead_letters = Counter("qr_stream_dead_letters_total", "Records that cannot be counted", registry=registry)
        self.failures = Counter("qr_stream_redis_failures_total", "Steps that Redis broke off, to be done again", registry=registry)
        self.step_seconds = Histogram("qr_stream_step_seconds", "Time of one step that had entries", registry=registry)
        self.lag_seconds = Gauge("qr_stream_lag_seconds", "From the oldest entry's arrival to its commit, last step", registry=registry)
        self.backlog = Gauge(
            "qr_stream_backlog_entries", "Entries in the owned streams: not folded, or not in Parquet yet", registry=registry
        )
        self.partitions = Gauge("qr_stream_partitions", "Partitions owned by this process", registry=registry)
        self.idle = False

    def observe(self, entries: int, seconds: float, lag: float, partitions: int) -> None:
        """After each step."""
        self.partitions.set(partitions)
        self.idle = partitions > 0 and not entries
        self.lag_seconds.set(lag)
        if entries:
            self.entries.inc(entries)
            self.step_seconds.observe(seconds)

    def total(self, counter: Counter) -> int:
        """What a counter has come to."""
        return int(_value(counter))

    def line(self) -> str:
        """One line for a screen."""
        partitions, lag = int(_value(self.partitions)), _value(self.lag_seconds)
        counts = f"{self.total(self.entries):,} entries, {self.total(self.duplicates):,} repeated, {self.total(self.dead_letters):,} dead"
        return f"{partitions} partitions, {counts}, lag {lag * 1000:.0f} ms"

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Answer GET /metrics in a thread, on the loopback interface."""
        start_http_server(port, addr=host, registry=self.registry)


def _value(metric: Counter | Gauge) -> float:
    return next(iter(metric.collect())).samples[0].value
