"""Foreign logs: each kind of file is read or refused by name, and every row is counted, or left out with its reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather

from bandit.errors import EmptyLogError, InvalidTableError, InvalidValueError, QueryRewardsError, Status
from bandit.ope.estimators.batch import BUCKETS
from query_rewards import main
from tests.open_bandit import FILE
from tests.strategies import thresholds
from training.evaluation.foreign.logged_rows import COPY, SKIPPED
from training.evaluation.foreign.read import read_foreign
from training.evaluation.foreign_logs import evaluate_file
from training.evaluation.result import Evaluation

ROWS = 3000
VW_TEXT = Path(__file__).parents[2] / "data" / "vowpal" / "rcv1_raw_cb_small.vw"
Put = Callable[..., Path]


def decisions() -> Iterator[tuple[int, float, float]]:
    """Chosen action of four, its probability, and its reward: the first action is liked, and chosen more often."""
    rng = np.random.default_rng(0)
    probabilities = np.array([0.7, 0.1, 0.1, 0.1])
    for _ in range(ROWS):
        action = int(rng.choice(4, p=probabilities))
        yield action, float(probabilities[action]), float(rng.random() < (0.4 if action == 0 else 0.1))


DECISIONS = list(decisions())
UNIFORM_VALUE = float(np.mean([reward / (4 * probability) for _, probability, reward in DECISIONS]))


def event(number: int, **fields: Any) -> dict[str, Any]:
    """One decision as the logger of Azure Personalizer writes it."""
    action, probability, reward = DECISIONS[number]
    order = [action + 1, *(other + 1 for other in range(4) if other != action)]
    head = {"_label_cost": -reward, "_label_probability": probability, "_label_Action": order[0], "_labelIndex": action}
    tail = {"a": order, "c": {"User": {"age": number % 7}, "_multi": [{}] * 4}, "p": [probability, *([(1 - probability) / 3] * 3)]}
    return {**head, "Version": str(number % 2), "EventId": f"e{number}", **tail, **fields}


EVENTS = [event(number) for number in range(ROWS)]


def lines(events: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in events)


def table(header: str = "action,probability,reward,actions", row: Callable[[int, int, float, float], str] | None = None) -> str:
    write = row or (lambda number, action, probability, reward: f"{action},{probability},{reward},4")
    return "\n".join([header, *(write(number, *one) for number, one in enumerate(DECISIONS))]) + "\n"


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def written(content: str | bytes, name: str = "log.txt") -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


def evaluated(file: Path, policy: str = "uniform", where: tuple[str, ...] = (), reward_range: str = "0,1", **options: Any) -> Evaluation:
    return evaluate_file(file, policy, where, reward_range, thresholds(), **options)


def taken(file: Path, where: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """What the reader took and left, without an evaluation."""
    return read_foreign(file, where, **options).summary()


def value(found: Evaluation) -> float:
    return found.values["ips"]["value"]


def refused(file: Path, **options: Any) -> InvalidTableError:
    with pytest.raises(InvalidTableError) as caught:
        evaluated(file, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    return caught.value


# Which rows count.


def test_a_clean_log_counts_every_row(put: Put) -> None:
    found = evaluated(put(lines(EVENTS)))
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-12)
    assert found.log == {"format": "dsjson", "rows": ROWS, "counted": ROWS, "left_out": {}}
    assert found.notes == []


@pytest.mark.parametrize(
    ("fields", "reason"), [({"_skipLearn": True}, SKIPPED[1]), ({"_deferred": True}, SKIPPED[2]), ({"_label_cost": None}, SKIPPED[3])]
)
def test_decisions_that_nobody_saw_or_labelled_do_not_count(put: Put, fields: dict[str, Any], reason: str) -> None:
    unseen = [event(number, EventId=f"s{number}", **{"_label_cost": 0.0, **fields}) for number in range(500)]
    found = evaluated(put(lines(EVENTS + unseen)))
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-12)
    assert found.log["left_out"] == {reason: 500}
    assert found.notes == [f"500 of 3,500 rows were left out: {reason}"]


@pytest.mark.parametrize(
    ("observation", "counts"),
    [({"EventId": "e0", "ActionTaken": True}, 1), ({"v": 1.0, "EventId": "e0"}, 1), ({"DeferredAction": False}, 1), ({"EventId": "e0"}, 0)],
)
def test_a_deferred_decision_counts_once_it_was_activated(put: Put, observation: dict[str, Any], counts: int) -> None:
    assert taken(put(lines([*EVENTS, event(0, _deferred=True, EventId="d", o=[observation])])))["counted"] == ROWS + counts


def test_a_decision_that_outlived_nine_dropped_ones_counts_ten_times(put: Put) -> None:
    survivors = [event(number, EventId=f"d{number}", pdrop=0.9, _label_cost=-1.0) for number in range(ROWS)]
    found = evaluated(put(lines(EVENTS + survivors)), policy="logged")
    plain = float(np.mean([reward for _, _, reward in DECISIONS]))
    assert value(found) == pytest.approx((plain + 10.0) / 11.0, rel=1e-12)
    assert found.decisions == 2 * ROWS
    same = evaluated(put(lines([{**one, "pdrop": 0.5} for one in EVENTS])))
    assert value(same) == pytest.approx(UNIFORM_VALUE, rel=1e-12)


@pytest.mark.parametrize("drop", [1.0, 1.5, -0.1])
def test_a_chance_of_dropping_that_cannot_be_is_refused(put: Put, drop: float) -> None:
    assert refused(put(lines([{**one, "pdrop": drop} for one in EVENTS]))).column == "pdrop"


def test_the_last_copy_of_a_decision_counts(put: Put) -> None:
    first = [{**one, "_label_cost": 0.0} for one in EVENTS]
    found = evaluated(put(lines(first + EVENTS)))
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-12)
    assert found.log["left_out"] == {COPY: ROWS}
    assert value(evaluated(put(lines(EVENTS + first)))) == 0.0
    unseen = taken(put(lines([*EVENTS, event(7, _skipLearn=True)])))
    assert unseen == {"format": "dsjson", "rows": ROWS + 1, "counted": ROWS - 1, "left_out": {COPY: 1, SKIPPED[1]: 1}}


def test_rows_without_an_id_are_decisions_of_their_own(put: Put) -> None:
    nameless = {name: content for name, content in EVENTS[0].items() if name != "EventId"}
    assert taken(put(lines([*EVENTS, nameless, nameless, *EVENTS])))["counted"] == ROWS + 2
    header = "action,probability,reward,actions,decision_id"
    content = table(header, lambda number, a, p, r: f"{a},{p},{r},4,{'' if number % 5 == 0 else number // 2}")
    found = taken(put(content))
    expected = len({number // 2 for number in range(ROWS) if number % 5}) + ROWS // 5
    assert found["counted"] == expected
    assert read_foreign(put(table())).notes() == ["rows have no id: duplicates would count twice"]


def test_slots_of_one_decision_are_not_copies_but_a_slot_that_comes_twice_is(put: Put) -> None:
    header = "action,probability,reward,actions,slot,decision_id"
    rows = [f"{a},{p},{r},4,{number % 3},{number // 3}" for number, (a, p, r) in enumerate(DECISIONS)]
    found = taken(put("\n".join([header, *rows, *rows[:30]]) + "\n"))
    assert found["counted"] == ROWS
    assert found["left_out"] == {COPY: 30}


def slot(cost: float, probabilities: list[float], **fields: Any) -> dict[str, Any]:
    return {"_label_cost": cost, "_id": "s", "_a": list(range(len(probabilities))), "_p": probabilities, "_o": [], **fields}


def test_each_slot_of_a_conditional_contextual_bandit_is_a_row(put: Put) -> None:
    context = {"_multi": [{}] * 3, "_slots": [{}, {}]}
    both = [
        {"EventId": f"c{number}", "c": context, "_outcomes": [slot(-1.0, [0.5, 0.25, 0.25]), slot(0.0, [0.8, 0.2])]} for number in range(50)
    ]
    log = read_foreign(put(lines(both)))
    assert len(log) == 100
    np.testing.assert_array_equal(np.array(log.rows["actions"][:2]), [3.0, 2.0])
    assert log.rows["user"][0] == log.rows["user"][1]
    assert value(evaluated(put(lines(both)))) == pytest.approx((1 / 3 / 0.5 + 0.0) / 2)
    assert value(evaluated(put(lines(both + both)))) == pytest.approx((1 / 3 / 0.5 + 0.0) / 2)  # copies of lines, not of slots
    assert taken(put(lines(EVENTS + both)))["counted"] == ROWS + 100


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({"c": {"_multi": [{"_slot_id": 0}], "_slots": [{}]}}, "slates"),
        ({"_label_cost": 1.0, "c": {"_multi": [], "_slots": [{}]}, "_outcomes": [{"_a": [0], "_p": [0.5]}]}, "slates"),
        ({"_label_ca": {"action": 1.0, "cost": 0.0, "pdf_value": 0.1}, "c": {}}, "continuous"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(put: Put, line: dict[str, Any], word: str) -> None:
    assert word in refused(put(lines([line] * 5))).problem


def test_checkpoints_and_observations_without_a_decision_are_counted_and_passed_over(put: Put) -> None:
    orphan = {"RewardValue": 1.0, "EventId": "e1", "Observations": [{"v": 1.0}]}
    found = evaluated(put("[CHECKPOINT INFO LINE]\n\n" + lines([orphan] * 40 + EVENTS) + "[CHECKPOINT INFO LINE]\n"))
    assert found.log["rows"] == ROWS + 42
    assert found.log["counted"] == ROWS
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-12)
    with pytest.raises(EmptyLogError, match="40 of 40 rows were left out: an observation without its decision"):
        evaluated(put(lines([orphan] * 40)))


def test_a_label_that_its_own_probabilities_contradict_cannot_be_read(put: Put) -> None:
    assert "none of the line's probabilities" in refused(put(lines([{**one, "_label_probability": 0.33} for one in EVENTS]))).problem


# --where


@pytest.mark.parametrize(
    ("where", "share"),
    [("Version=1", 2), ("c.User.age=3", 7), ("_labelIndex=0", None), ("EventId=e5", ROWS), ("_label_probability=0.1", None)],
)
def test_where_chooses_among_lines_of_json(put: Put, where: str, share: int | None) -> None:
    found = taken(put(lines(EVENTS)), where=(where,))
    if share is not None:
        assert found["counted"] == len(range(1 if share == 2 else 3 if share == 7 else 5, ROWS, share)) if share != ROWS else 1
    assert 0 < found["counted"] < ROWS
    assert found["left_out"] == {"--where does not hold": ROWS - found["counted"]}


@pytest.mark.parametrize("name", ["dsjson", "csv", "jsonl", "vw", "parquet"])
def test_a_column_that_no_row_has_is_an_error_in_every_format(put: Put, tmp_path: Path, name: str) -> None:
    file = kinds(put, tmp_path)[name]
    assert refused(file, where=("no_such_column=1",), reward_range="-1,1").column == "no_such_column"
    if name != "dsjson":
        kept = taken(file, where=("action=0",))
        assert kept["counted"] == sum(action == 0 for action, _, _ in DECISIONS)
    with pytest.raises(InvalidValueError, match="COLUMN=VALUE"):
        evaluated(file, where=("action",))
    if name != "vw":
        with pytest.raises(EmptyLogError, match="--where does not hold"):
            evaluated(file, where=("Version=9" if name == "dsjson" else "action=9",))


# Kinds of files.


def kinds(put: Put, folder: Path) -> dict[str, Path]:
    """The same log in each format."""
    columns = dict(zip(("action", "probability", "reward"), (list(column) for column in zip(*DECISIONS, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "actions": [4] * ROWS}), folder / "log.parquet", row_group_size=700)
    rows = [{"action": a, "probability": p, "reward": r, "actions": 4} for a, p, r in DECISIONS]
    return {
        "dsjson": put(lines(EVENTS), "log.dsjson"),
        "csv": put(table(), "log.csv"),
        "jsonl": put(lines(rows), "log.jsonl"),
        "vw": put("".join(f"{a}:{-r}:{p} |u a:1 b\n" for a, p, r in DECISIONS), "log.vw"),
        "parquet": folder / "log.parquet",
    }


SEMICOLON = table("action;probability;reward;actions", lambda n, a, p, r: f"{a};{p};{r};4")
READABLE = {
    "gzip": gzip.compress(lines(EVENTS).encode()),
    "several gzip members": gzip.compress(lines(EVENTS[:9]).encode()) + gzip.compress(lines(EVENTS[9:]).encode()),
    "bzip2": bz2.compress(table().encode()),
    "xz": lzma.compress(table().encode()),
    "mark of UTF-8": b"\xef\xbb\xbf" + lines(EVENTS).encode(),
    "mark of UTF-8 before a header": b"\xef\xbb\xbf" + table().encode(),
    "UTF-16": lines(EVENTS).encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + table().encode("utf-16-be"),
    "UTF-32": table().encode("utf-32"),
    "lines that end as Windows ends them": table().replace("\n", "\r\n").encode(),
    "no break after the last line": table().rstrip("\n").encode(),
    "tabs": table().replace(",", "\t").encode(),
    "semicolons": SEMICOLON.encode(),
    "bars": table().replace(",", "|").encode(),
    "decimal commas between semicolons": SEMICOLON.replace(".", ",").encode(),
    "decimal commas between tabs": SEMICOLON.replace(".", ",").replace(";", "\t").encode(),
    "quotes and blanks": table('"action", probability ,reward,actions', lambda n, a, p, r: f'"{a}", {p} ," {r}", 4').encode(),
    "an index and a free text": table(
        ",action,probability,reward,actions,note", lambda n, a, p, r: f'{n},{a},{p},{r},4,"one, ""two""\nthree"'
    ).encode(),
    "true and false": table(row=lambda n, a, p, r: f"{a},{p},{bool(r)},4").encode(),
    "JSON lines": lines([{"action": a, "probability": p, "reward": bool(r), "actions": 4, "more": [1]} for a, p, r in DECISIONS]).encode(),
    "exponents": table(row=lambda n, a, p, r: f"{a},{p:.9e},+{r},4.0").encode(),
}


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("name", ["log", "LOG.JSON"])
def test_a_file_is_read_by_its_content_whatever_it_is_called(put: Put, kind: str, name: str) -> None:
    found = evaluated(put(READABLE[kind], name))
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-9)
    assert found.log["counted"] == ROWS
    assert found.log["left_out"] == {}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_of_a_table_gives_one_value(put: Put, tmp_path: Path, kind: str) -> None:
    assert value(evaluated(kinds(put, tmp_path)[kind])) == pytest.approx(UNIFORM_VALUE, rel=1e-12)


def test_text_of_vowpal_wabbit_is_read_one_line_a_decision(put: Put, tmp_path: Path) -> None:
    file = kinds(put, tmp_path)["vw"]
    assert value(evaluated(file, policy="logged")) == pytest.approx(np.mean([reward for _, _, reward in DECISIONS]))
    theirs = evaluated(VW_TEXT, reward_range="-1,0")  # two actions, each with probability 1/2: uniform is what was logged
    assert theirs.log == {"format": "Vowpal Wabbit text", "rows": 1000, "counted": 1000, "left_out": {}}
    assert value(theirs) == pytest.approx(theirs.baseline_values["ips"]["value"])


def test_text_of_vowpal_wabbit_is_read_one_block_a_decision(put: Put) -> None:
    def block(action: int, probability: float, reward: float) -> str:
        label = f"0:{-reward}:{probability} "
        return "shared |u a\n" + "".join(f"{label if place == action else ''}|c n:{place}\n" for place in range(4)) + "\n"

    found = evaluated(put("".join(block(*one) for one in DECISIONS)))
    assert value(found) == pytest.approx(UNIFORM_VALUE, rel=1e-12)
    unlabelled = "shared |u a\n|c n:1\n|c n:2\n\n"
    assert taken(put("".join(block(*one) for one in DECISIONS) + unlabelled))["left_out"] == {SKIPPED[3]: 1}


def test_tags_of_vowpal_wabbit_are_not_ids(put: Put) -> None:
    text = "".join(f"{a}:{-r}:{p} 'same| x\n" for a, p, r in DECISIONS)
    assert taken(put(text))["counted"] == ROWS
    assert taken(put(text), where=("tag=same",))["counted"] == ROWS


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ccb shared | a\nccb action | b\nccb slot 0:0.8:1.0 | c\n\n" * 3, "conditional contextual bandits"),
        ("slates shared 0.8 | a\nslates action 0 | b\n\n" * 3, "slates"),
        ("1:0.5 | a b\n" * 3, "action:cost:probability"),
        ("1:0:0.5 2:1:0.5 | a\n" * 3, "several actions with a cost"),
        ("1:x:0.5 | a\n" * 3, "'1:x:0.5' is not action:cost:probability"),
        ("1:0:0.5 | a\n1:0:0.5\n" * 3, "a line without '|'"),
    ],
)
def test_other_labels_of_vowpal_wabbit_are_refused_by_name(put: Put, text: str, word: str) -> None:
    assert word in refused(put(text), policy="logged").problem


def test_labels_of_a_regression_are_no_labels_of_a_bandit(put: Put) -> None:
    with pytest.raises(EmptyLogError, match="no label"):
        evaluated(put("1 | a b\n0 | c\n" * 3))


REFUSED = {
    "zip": (b"PK\x03\x04" + bytes(40), "zip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
    "SQLite": (b"SQLite format 3\0" + bytes(40), "SQLite"),
    "zeros": (bytes(500), "neither text nor Parquet"),
    "a JSON array": (b'[{"action": 1}]', "a JSON array"),
    "a cut gzip": (gzip.compress(lines(EVENTS).encode())[:-500], "cut"),
    "a gzip of Parquet": (gzip.compress(FILE.read_bytes()), "neither text nor Parquet"),
    "a cut Parquet": (FILE.read_bytes()[:-500], "not a readable Parquet file"),
    "Parquet with damaged pages": (FILE.read_bytes()[:4] + bytes(300_000) + FILE.read_bytes()[300_004:], "not a readable Parquet file"),
    "an endless line": (b'{"a": "' + b"x" * (17 * 2**20), "not a log of lines"),
    "another encoding": (table("action,probability,reward,Gr\xf6\xdfe").encode("latin-1"), "UTF-8"),
    "a table of something else": (b"name,age\nann,3\n", "missing"),
    "prose": (b"Dear Sir,\nthis is no log.\n", "missing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(put: Put, kind: str) -> None:
    content, word = REFUSED[kind]
    assert word in str(refused(put(content)))


def test_feather_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"action": [1]}), tmp_path / "log.feather")
    assert "Arrow" in refused(tmp_path / "log.feather").problem
    assert "not a file" in refused(tmp_path).problem
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyLogError, match="foreign log"):
        evaluated(tmp_path / "empty")


# Rows that cannot be read.


def test_a_last_line_that_is_cut_short_costs_that_line(put: Put, tmp_path: Path) -> None:
    for content in (lines(EVENTS)[:-200], table()[:-5], lines([{"action": 1, "probability": 0.5, "reward": 1}] * ROWS)[:-9]):
        found = taken(put(content))
        assert found["left_out"] == {"the last line is cut short": 1}
        assert found["counted"] == ROWS - 1
    short = taken(put(lines(EVENTS[:3])[:-200]))  # a third of the log, and still no reason to refuse it
    assert short["counted"] == 2


def broken(kind: str, count: int) -> str:
    """A log of which some rows, 30 apart and after row 100, cannot be read."""
    bad = {100 + 30 * number for number in range(count)}
    if kind == "dsjson":
        return "".join(("{broken\n" if number in bad else json.dumps(one) + "\n") for number, one in enumerate(EVENTS))
    cell = {"cells": "1,2", "percent": "1,70%,0,4", "yes": "1,0.5,yes,4", "empty": "1,,1,4", "text": "1,0.5,1,four"}[kind]
    return table(row=lambda n, a, p, r: cell if n in bad else f"{a},{p},{r},4")


WORDS = {
    "dsjson": (None, "malformed"),
    "cells": (None, "2 cells, the header has 4"),
    "percent": ("probability", "'70%' is not a number: write a share, 0.7 for 70%"),
    "yes": ("reward", "'yes' is not a number: write 1 and 0"),
    "empty": ("probability", "missing"),
    "text": ("actions", "'four' is not a number"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_rows_that_cannot_be_read_are_left_out_up_to_a_share_and_then_refused_with_the_first(put: Put, kind: str) -> None:
    column, word = WORDS[kind]
    few = taken(put(broken(kind, 30)))  # 1 %
    assert few["counted"] == ROWS - 30
    assert list(few["left_out"].values()) == [30]
    error = refused(put(broken(kind, 31)))
    assert (error.row, error.column) == (100, column)
    assert word in error.problem
    assert "31 of 3,000 rows cannot be read, [intake] tolerate allows 1.00%" in error.problem
    assert taken(put(broken(kind, 31)), tolerate=0.02)["counted"] == ROWS - 31


def test_decimal_commas_between_commas_are_named(put: Put) -> None:
    text = table(row=lambda n, a, p, r: f'{a},"{str(p).replace(".", ",")}",{r},4')
    assert "write a decimal point" in refused(put(text)).problem


def test_rows_in_another_encoding_cannot_be_read(put: Put) -> None:
    text = table("action,probability,reward,actions,user_id", lambda n, a, p, r: f"{a},{p},{r},4,{'Zoë' if n < 40 else 'Zoe'}")
    assert "UTF-8" in refused(put(text.encode("latin-1"))).problem


@pytest.mark.parametrize("column", ["reward", "probability", "actions"])
def test_two_columns_of_a_name_are_one_clear_error(put: Put, tmp_path: Path, column: str) -> None:
    twice = table(f"action,probability,reward,actions,{column}", lambda n, a, p, r: f"{a},{p},{r},4,0")
    assert refused(put(twice)).column == column
    names = ["action", "probability", "reward", "actions", column]
    pq.write_table(pa.Table.from_arrays([pa.array([1.0, 1.0])] * 5, names), tmp_path / "log.parquet")
    assert "2 columns have this name" in refused(tmp_path / "log.parquet").problem
    unused = table("action,probability,reward,actions,x,x", lambda n, a, p, r: f"{a},{p},{r},4,0,1")
    assert taken(put(unused))["counted"] == ROWS
    assert refused(put(unused), where=("x=1",)).column == "x"


# Values that cannot be.


@pytest.mark.parametrize("probability", [1.00000012, 1.0000005])
def test_the_rounding_of_float32_is_accepted(put: Put, probability: float) -> None:
    more = event(0, EventId="x", _label_probability=probability, p=[probability, 0, 0, 0])
    assert evaluated(put(lines([*EVENTS, more]))).log["counted"] == ROWS + 1


@pytest.mark.parametrize("probability", [1.01, 1.00001, 0.0, -0.5, 1e9])
def test_a_probability_that_nothing_can_have_is_refused_with_its_row(put: Put, probability: float) -> None:
    error = refused(put(lines([*EVENTS[:700], event(0, _label_probability=probability, p=[]), *EVENTS[700:]])))
    assert (error.column, error.row) == ("probability", 700)


@pytest.mark.parametrize("row", [5, 701, 1409, 2999])
def test_rows_are_numbered_over_the_whole_file_not_over_its_row_groups(tmp_path: Path, row: int) -> None:
    rewards = np.zeros(ROWS)
    rewards[row] = 7.0
    columns = {"action": [1] * ROWS, "probability": [0.5] * ROWS, "reward": rewards, "decision_id": [str(n // 2) for n in range(ROWS)]}
    pq.write_table(pa.table({**columns, "decision_id": [str(n) for n in range(ROWS)]}), tmp_path / "log.parquet", row_group_size=700)
    error = refused(tmp_path / "log.parquet", policy="logged")
    assert (error.row, error.column) == (row, "reward")
    kept = pa.table({**columns, "decision_id": [str(n) for n in range(ROWS)], "half": [str(n % 2) for n in range(ROWS)]})
    pq.write_table(kept, tmp_path / "log.parquet", row_group_size=700)
    assert refused(tmp_path / "log.parquet", policy="logged", where=(f"half={row % 2}",)).row == row


# Actions that the log never has.


def uncovered(folder: Path, share: float, rows: int = 20_000) -> Path:
    rng = np.random.default_rng(0)
    columns = {"action": rng.integers(0, 4, rows), "probability": np.full(rows, 0.25), "reward": -(rng.random(rows) < 0.5).astype(float)}
    target = {"target_probability": np.full(rows, 0.25 * (1.0 - share))}
    pq.write_table(pa.table({**columns, **target}), folder / "log.parquet")
    return folder / "log.parquet"


def test_a_target_that_takes_actions_which_the_log_never_has_cannot_be_told(tmp_path: Path) -> None:
    found = evaluated(uncovered(tmp_path, 0.08), policy="column", reward_range="-1,0")
    assert found.verdict == "cannot tell"
    assert any("about 8.0% of the target's probability is on actions that this log does not have" in reason for reason in found.reasons)
    little = evaluated(uncovered(tmp_path, 0.005), policy="column", reward_range="-1,0")
    assert any("about 0.5%" in note for note in little.notes)
    assert not any("does not have" in reason for reason in [*little.reasons])
    none = evaluated(uncovered(tmp_path, 0.0), policy="column", reward_range="-1,0")
    assert not any("does not have" in text for text in [*none.reasons, *none.notes])


def test_actions_without_a_chance_are_seen_in_the_probabilities_of_a_line(put: Put) -> None:
    closed = [{**one, "p": [one["_label_probability"], 1.0 - one["_label_probability"], 0.0, 0.0]} for one in EVENTS]
    found = evaluated(put(lines(closed)))
    assert found.diagnostics["unsupported_weight_share"] == pytest.approx(0.5)
    assert found.verdict == "cannot tell"


# The command line, memory, and anything at all.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def ran(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["query-rewards", "evaluate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return ran


def test_the_command_says_what_it_took_and_what_it_left(run: Callable[..., tuple[int, str, str]], put: Put) -> None:
    file = put(lines([*EVENTS, *EVENTS[:5], event(1, EventId="s", _skipLearn=True)]))
    status, out, _ = run("--logs", file, "--policy", "logged", "--json")
    assert status == Status.NOT_PROMOTED
    assert json.loads(out)["log"] == {"format": "dsjson", "rows": 3006, "counted": 3000, "left_out": {COPY: 5, SKIPPED[1]: 1}}
    status, out, _ = run("--logs", file, "--policy", "logged")
    assert "log.counted" in out
    status, out, err = run("--logs", put(broken("percent", 40)))
    assert (status, out, len(err.strip().splitlines())) == (Status.FAILED, "", 1)
    assert "row 100: '70%' is not a number" in err


def test_memory_holds_a_few_bytes_of_a_row_whatever_the_row_weighs(put: Put) -> None:
    heavy = "x" * 4000
    file = put("".join(json.dumps({**one, "note": heavy}) + "\n" for one in EVENTS * 3))
    assert file.stat().st_size > 35e6
    read_foreign(file)
    tracemalloc.start()
    said: list[str] = []
    read_foreign(file, say=said.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_progress_is_said_of_a_long_log(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.foreign.read._SAID_EVERY", 1000)
    said: list[str] = []
    read_foreign(put(table() + table().partition("\n")[2] * 12), say=said.append)
    assert said[0] == "reading log.txt: 16,384 rows"


def test_users_fall_into_the_same_bucket_in_every_file(put: Put) -> None:
    text = table("action,probability,reward,user_id", lambda n, a, p, r: f"{a},{p},{r},{'' if n == 3 else f'u{n % 9}'}")
    log = read_foreign(put(text))
    assert log.rows["user"][0] == log.rows["user"][9] == zlib.crc32(b"u0") % BUCKETS
    assert log.rows["user"][3] == 3


SAMPLES = [
    lines(EVENTS[:20]).encode(),
    table()[:400].encode(),
    "".join(f"{a}:{-r}:{p} |u a:1 b\n" for a, p, r in DECISIONS[:20]).encode(),
    gzip.compress(lines(EVENTS[:20]).encode()),
    lines(EVENTS[:20]).encode("utf-16"),
    lines([{"action": 1, "probability": 0.5, "reward": 1}] * 20).encode(),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_at_all_gives_anything_but_a_value_or_one_of_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.one_of(st.sampled_from(SAMPLES), st.binary(max_size=300), st.text(max_size=200).map(str.encode))))
    for _ in range(data.draw(st.integers(0, 4))):
        place, size = data.draw(st.integers(0, max(len(content), 1))), data.draw(st.integers(0, 12))
        content[place : place + size] = data.draw(st.binary(max_size=12))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    file = tmp_path / "log"
    file.write_bytes(bytes(content))
    where = data.draw(st.sampled_from([(), ("action=1",), ("c.User.age=3",)]))
    try:
        evaluated(file, data.draw(st.sampled_from(["uniform", "logged", "column"])), where, "-1,1", tolerate=0.5)
        said = ""
    except QueryRewardsError as error:
        said = str(error)
    assert "\n" not in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), damage=st.binary(min_size=1, max_size=30), cut=st.booleans())
def test_no_damage_to_a_parquet_file_gives_anything_but_a_value_or_one_of_our_errors(
    tmp_path: Path, place: int, damage: bytes, cut: bool
) -> None:
    sound = tmp_path / "sound.parquet"
    if not sound.exists():
        columns = {"action": [1] * 200, "probability": [0.5] * 200, "reward": [0.5] * 200, "decision_id": [str(n) for n in range(200)]}
        pq.write_table(pa.table(columns), sound)
    content = bytearray(sound.read_bytes())
    start = 4 + place % (len(content) - 4)
    content[start : start + len(damage)] = damage
    (tmp_path / "log.parquet").write_bytes(bytes(content[:start] if cut else content))
    try:
        evaluated(tmp_path / "log.parquet", policy="logged")
        said = ""
    except QueryRewardsError as error:
        said = str(error)
    assert "\n" not in said
