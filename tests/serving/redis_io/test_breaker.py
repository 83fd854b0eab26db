"""The circuit breaker, with its own clock."""

from __future__ import annotations

import logging
import time

import pytest

from serving.redis_io.breaker import CircuitBreaker, was_patient


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failures=3, pause=2.0, clock=clock)


def test_it_opens_after_failures_in_a_row_only(breaker):
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert (breaker.is_open, breaker.allows()) == (False, True)
    for _ in range(3):
        breaker.failed()
    assert (breaker.is_open, breaker.allows()) == (True, False)


def test_silence_counts_only_when_redis_had_its_time_and_we_woke_in_time():
    now = time.monotonic()
    assert was_patient(now - 1.0, now, 1.0)
    assert not was_patient(now - 0.5, now, 1.0)  # the caller's own time was up
    assert not was_patient(now - 2.0, now - 1.0, 1.0)  # this process slept on


def test_after_the_pause_one_caller_tries_and_its_success_lets_all_in(breaker, clock):
    for _ in range(3):
        breaker.failed()
    clock.now += 1.9
    assert not breaker.allows()
    clock.now += 0.2
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True] * 3


def test_a_try_that_fails_or_never_reports_costs_another_pause(breaker, clock):
    for _ in range(3):
        breaker.failed()
    clock.now += 2.1
    assert breaker.allows()
    breaker.failed()
    clock.now += 1.9
    assert not breaker.allows()
    clock.now += 0.2
    assert breaker.allows()  # and never reports
    assert not breaker.allows()
    clock.now += 2.1
    assert breaker.allows()


def test_each_change_is_one_line(breaker, clock, caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(10):
        breaker.failed()
    for _ in range(10):
        breaker.succeeded()
    assert [record.message for record in caplog.records] == [
        "Redis failed 3 times in a row: left alone for 2 s at a time",
        "Redis answers again",
    ]
