"""What feedback must be to be counted: everything else is refused with a reason, and nothing raises."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.ids import MAX_ID_BYTES, id_problem
from bandit.records import Feedback
from bandit.rewards.feedback import FUTURE_TOLERANCE, MAX_RECORD_BYTES, FeedbackValidator, Rejected
from bandit.settings.load import Settings
from tests.strategies import NOW, law
from tests.tables_made import DAY, HOUR, feedback

VALIDATOR = Settings().feedback_validator()
IDS = ("event_id", "decision_id", "user_id", "cluster_id", "query_id", "item_id")
GOOD = feedback("e", at=NOW - HOUR)


def test_the_settings_name_the_actions_and_the_window() -> None:
    assert set(VALIDATOR.actions) == {"impression", "repin", "click", "closeup", "hide"}
    assert VALIDATOR.window == 2 * DAY


@pytest.mark.parametrize("action", sorted(VALIDATOR.actions))
def test_every_known_action_is_taken(action: str) -> None:
    assert VALIDATOR.rejection_reason(msgspec.structs.replace(GOOD, action=action), NOW) == ""


@pytest.mark.parametrize("action", ["", "bookmark", "Repin", "x" * 5000, "\0"])
def test_an_unknown_action_is_refused_and_the_reason_stays_short(action: str) -> None:
    reason = VALIDATOR.rejection_reason(msgspec.structs.replace(GOOD, action=action), NOW)
    assert reason.startswith("action: expected one of ['click', 'closeup', 'hide', 'impression', 'repin'], received ")
    assert len(reason) < 500


BAD_IDS = {
    "missing": ("", "empty"),
    "control character": ("a\nb", "control characters"),
    "escape": ("\x1b[2J", "control characters"),
    "nothing but zero": ("\0", "control characters"),
    "half a character": ("\ud800", "not UTF-8"),
    "4 KB": ("x" * 4096, "4096 characters, expected at most 256 bytes"),
    "one byte too long": ("x" * 257, "257 characters"),
    "too long in bytes": ("é" * 129, "129 characters"),
}


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(("value", "problem"), BAD_IDS.values(), ids=BAD_IDS)
def test_an_id_that_is_none_is_refused_by_its_name(name: str, value: str, problem: str) -> None:
    reason = VALIDATOR.rejection_reason(msgspec.structs.replace(GOOD, **{name: value}), NOW)
    assert reason.startswith(f"{name}: {problem}")
    assert len(reason) < 1200
    assert reason.isprintable()


def test_the_longest_id_is_taken() -> None:
    assert id_problem("x" * MAX_ID_BYTES) == id_problem("é" * (MAX_ID_BYTES // 2)) == ""


@pytest.mark.parametrize(
    "value",
    ["M\u00fcller", "\u6d77", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "a b", "\U0001f469\u200d\U0001f373", "user_id=ann/*[1]?"],
)
def test_letters_of_every_script_are_ids(value: str) -> None:
    """Persian needs the zero-width non-joiner, many emoji its sibling."""
    assert id_problem(value) == ""


def test_an_event_of_the_longest_ids_fits_a_record() -> None:
    longest = msgspec.structs.replace(GOOD, **dict.fromkeys(IDS, "x" * MAX_ID_BYTES))
    assert VALIDATOR.read(msgspec.msgpack.encode(longest), NOW) == longest


def test_times_are_judged_to_the_microsecond() -> None:
    def reason(at: int) -> str:
        return VALIDATOR.rejection_reason(msgspec.structs.replace(GOOD, occurred_at=at), NOW)

    assert reason(NOW + FUTURE_TOLERANCE) == reason(NOW - VALIDATOR.window) == ""
    assert reason(NOW + FUTURE_TOLERANCE + 1) == f"occurred_at: {NOW + FUTURE_TOLERANCE + 1} is in the future"
    assert reason(NOW - VALIDATOR.window - 1) == f"occurred_at: {NOW - VALIDATOR.window - 1} is older than the window of 48 hours"


def test_a_record_is_read_as_it_was_written() -> None:
    assert VALIDATOR.read(msgspec.msgpack.encode(GOOD), NOW) == GOOD


RECORDS = {
    "empty": b"",
    "noise": b"\xc1\xff",
    "JSON": msgspec.json.encode(GOOD),
    "a list": msgspec.msgpack.encode([1, 2]),
    "a field missing": msgspec.msgpack.encode(dict.fromkeys(IDS, "x")),
    "a number for an id": msgspec.msgpack.encode(msgspec.structs.asdict(GOOD) | {"user_id": 5}),
    "a text for a time": msgspec.msgpack.encode(msgspec.structs.asdict(GOOD) | {"occurred_at": "now"}),
    "a fraction for a time": msgspec.msgpack.encode(msgspec.structs.asdict(GOOD) | {"occurred_at": 0.5}),
    "cut off": msgspec.msgpack.encode(GOOD)[:-3],
    "no UTF-8": msgspec.msgpack.encode(GOOD).replace(b"\xa1u", b"\xa1\xff"),
    "nested deep": b"\x81\xa1x" + b"\x91" * 8000,
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_that_is_no_event_is_refused(record: bytes) -> None:
    rejected = VALIDATOR.read(record, NOW)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("not a feedback event: ")


def test_a_record_of_10_megabytes_is_refused_by_its_size_alone() -> None:
    size = 10 * 1024 * 1024
    assert VALIDATOR.read(b"\0" * size, NOW) == Rejected(f"{size} bytes, expected at most {MAX_RECORD_BYTES}")


@law
@given(st.binary(max_size=300))
def test_noise_never_raises(record: bytes) -> None:
    assert isinstance(VALIDATOR.read(record, NOW), Rejected)


@law
@given(st.text(max_size=300), st.integers(-(2**63), 2**63 - 1))
def test_whatever_is_taken_can_be_stored_and_read_again(text: str, at: int) -> None:
    event = Feedback(**dict.fromkeys(IDS, text), action="repin", occurred_at=at)
    anything_goes = FeedbackValidator(actions=["repin"], window=2**70)
    if anything_goes.rejection_reason(event, NOW) == "":
        assert anything_goes.read(msgspec.msgpack.encode(event), NOW) == event
