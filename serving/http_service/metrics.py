"""What can be watched of a serving process: Prometheus metrics, base units, no user ids."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter as Counts

import redis
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from feature_repo.keys import PARTITIONS
from serving.selection import Selection
from serving.selector import QuerySelector

log = logging.getLogger(__name__)

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_BINS = 10  # of the fractional part of a quota
_LAG_SECONDS = 1.0  # between two looks at the streams, however often somebody scrapes
_SECONDS_PER_MICROSECOND = 1e-6


class ServingMetrics:
    """Metrics of one selector, in a registry of their own.

    The propensity audit: a quota's whole part is always drawn, its fraction with that probability. In each tenth of the fractions, what
    was drawn over what was expected tends to 1; a draw that does not follow its quotas shows there.
    """

    def __init__(self, selector: QuerySelector, client: redis.Redis) -> None:
        """Watch this selector; `client` looks at the streams when somebody scrapes."""
        self._selector, self._client = selector, client
        self.registry = registry = CollectorRegistry()
        self._seconds = Histogram("qr_select_seconds", "Time of one selection", ["degraded"], buckets=_BUCKETS, registry=registry)
        self._series = {flag: self._seconds.labels(str(flag).lower()) for flag in (False, True)}
        self._unlogged = Counter("qr_select_unlogged_total", "Selections with queries that are not in the log", registry=registry)
        self._empty = Counter("qr_select_empty_total", "Selections without queries", registry=registry)
        self._share = Gauge("qr_select_degraded_ratio", "Share of degraded selections, all since the start", registry=registry)
        self._expected = Counter("qr_propensity_expected_total", "Expected draws, by tenth of probability", ["tenth"], registry=registry)
        self._drawn = Counter("qr_propensity_drawn_total", "Actual draws, by tenth of probability", ["tenth"], registry=registry)
        self._bins = [(self._expected.labels(str(bin_)), self._drawn.labels(str(bin_))) for bin_ in range(_BINS)]
        self._version = Gauge("qr_model_info", "Version of the model that serves", ["version"], registry=registry)
        self._age = Gauge("qr_model_age_seconds", "Since the last decision that the model was trained from", registry=registry)
        self._circuit_open = Gauge("qr_redis_circuit_open", "1 while the circuit breaker is open", registry=registry)
        self._lag = Gauge("qr_stream_lag_seconds", "Age of the oldest entry that is not folded yet", ["stream"], registry=registry)
        self._waiting = Gauge("qr_stream_entries", "Entries that Redis holds", ["stream"], registry=registry)
        self._all = self._degraded = 0
        self._looked = -math.inf
        self._shown = ""
        selector.observer = self.observe

    def observe(self, selection: Selection, seconds: float) -> None:
        """After each selection."""
        self._all += 1
        self._degraded += selection.degraded
        self._series[selection.degraded].observe(seconds)
        if not selection.queries:
            self._empty.inc()
            return
        if not selection.logged:
            self._unlogged.inc()
        drawn = Counts(query.cluster_id for query in selection.queries)
        expected_in, drawn_in = [0.0] * _BINS, [0] * _BINS
        for cluster_id, quota in selection.quotas.items():
            whole = math.floor(quota)
            tenth = int((quota - whole) * _BINS)
            expected_in[tenth] += quota - whole
            drawn_in[tenth] += drawn[cluster_id] - whole
        for (expected, counted), wanted, got in zip(self._bins, expected_in, drawn_in, strict=True):
            expected.inc(wanted)
            counted.inc(max(got, 0))

    def page(self) -> bytes:
        """The metrics as Prometheus reads them. Blocks for a look at the streams."""
        self._share.set(self._degraded / self._all if self._all else 0.0)
        self._circuit_open.set(self._selector.breaker.is_open)
        model = self._selector.model.current
        if model is not None and model[0] != self._shown:
            if self._shown:
                self._version.remove(self._shown)
            self._shown = model[0]
            self._version.labels(self._shown).set(1)
        if model is not None:
            self._age.set(time.time() - model[1].manifest.trained_until * _SECONDS_PER_MICROSECOND)
        if time.monotonic() >= self._looked + _LAG_SECONDS and not self._selector.breaker.is_open:
            self._looked = time.monotonic()
            try:
                self._look()
            except redis.RedisError as error:
                log.debug("the streams could not be looked at: %s", error)  # the gauges stay as they were
        return generate_latest(self.registry)

    def _look(self) -> None:
        partitions = [self._selector.keys.partition(number) for number in range(PARTITIONS)]
        streams = {"feedback": [keys.feedback for keys in partitions], "decisions": [keys.decisions for keys in partitions]}
        pipeline = self._client.pipeline(transaction=False)
        for number, keys in enumerate(partitions):
            pipeline.hmget(keys.state, list(streams))
            for stream_keys in streams.values():
                pipeline.xlen(stream_keys[number])
        found = pipeline.execute()
        positions, lengths = found[:: 1 + len(streams)], [found[1 + place :: 1 + len(streams)] for place in range(len(streams))]
        for place, (stream, stream_keys) in enumerate(streams.items()):
            self._waiting.labels(stream).set(sum(lengths[place]))
            pipeline = self._client.pipeline(transaction=False)
            for partition in (number for number, length in enumerate(lengths[place]) if length):
                after = (positions[partition][place] or b"0-0").decode()
                pipeline.xrange(stream_keys[partition], min=f"({after}", count=1)
            oldest = [int(entries[0][0].split(b"-")[0]) for entries in pipeline.execute() if entries]
            self._lag.labels(stream).set(max(time.time() - min(oldest) / 1000.0, 0.0) if oldest else 0.0)
