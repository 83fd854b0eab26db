"""A user's decayed sums, one event at a time: the same numbers as the formula, whatever the order, the grouping and the reclusterings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.rewards.decay import HalfLives
from bandit.rewards.lineage import Move, Reclustering, owners_now
from bandit.rewards.scheme import RewardScheme
from bandit.rewards.sums import DRAW, MAX_CLUSTERS, SumsDefinition, Term, UserSums
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE, SUM_NAMES
from tests.strategies import NOW, law

DAY, MINUTE = MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE
WEIGHTS = {"repin": 1.0, "click": 0.5, "hide": -1.0}
DEFINITION = SumsDefinition(
    scheme=RewardScheme(weights=WEIGHTS, minimum=-1.0, maximum=2.0), half_lives=HalfLives(session=30 * MINUTE, long=14 * DAY)
)
ACTIONS = DEFINITION.scheme.action_types
TOLERANCE = 1e-9
Cells = dict[str, list[float]]

clusters = st.sampled_from(["a", "b", "c", "d"])
terms = st.lists(
    st.builds(Term, clusters, st.sampled_from([DRAW, *range(len(ACTIONS))]), st.integers(NOW - 3 * DAY, NOW)), min_size=1, max_size=30
)


@st.composite
def reclusterings(draw: st.DrawFn, max_size: int = 4) -> list[Reclustering]:
    """Some splits and merges, in order of time."""
    result = []
    for at in sorted(draw(st.sets(st.integers(NOW - 2 * DAY, NOW), max_size=max_size))):
        moves = []
        for source in draw(st.lists(clusters, unique=True, min_size=1, max_size=3)):
            to = draw(st.lists(clusters, unique=True, min_size=1, max_size=3))
            parts = draw(st.lists(st.integers(1, 9), min_size=len(to), max_size=len(to)))
            moves += [Move(from_cluster=source, to_cluster=one, share=part / sum(parts)) for one, part in zip(to, parts, strict=True)]
        result.append(Reclustering(user_id="u", effective_at=at, moves=moves))
    return result


def by_formula(added: Sequence[Term], as_of: int, history: Sequence[Reclustering] = ()) -> Cells:
    """S(T) = sum of r_e * 2^(-(T - t_e) / h), each term where `owners_now` puts it."""
    cells: Cells = defaultdict(lambda: [0.0] * len(SUM_NAMES))
    for cluster_id, code, at in added:
        session, long = math.exp2((at - as_of) / (30 * MINUTE)), math.exp2((at - as_of) / (14 * DAY))
        for credited, share in owners_now(cluster_id, at, history).items():
            cell = cells[credited]
            if code == DRAW:
                cell[4] += share * session
                continue
            weight = WEIGHTS.get(ACTIONS[code], 0.0)
            for place, amount in enumerate((float(code == 0) * session, weight * session, float(code == 0) * long, weight * long)):
                cell[place] += share * amount
    return cells


def cells_of(sums: UserSums) -> Cells:
    return {cluster_id: sums.values[row].tolist() for row, cluster_id in enumerate(sums.cluster_ids)}


def assert_same(found: Cells, expected: Cells) -> None:
    """To 1e-9 relative; sums of both signs may cancel, to far below the size of what was added."""
    for cluster_id in {*found, *expected}:
        empty = [0.0] * len(SUM_NAMES)
        assert found.get(cluster_id, empty) == pytest.approx(expected.get(cluster_id, empty), rel=TOLERANCE, abs=1e-12), cluster_id


def added(*parts: Sequence[Term]) -> UserSums:
    sums = UserSums(DEFINITION)
    for part in parts:
        sums.add(part)
    return sums


# -- order and time ---------------------------------------------------------------------------------------------------------------


@law
@given(terms, st.data())
def test_any_order_and_any_grouping_give_the_formula(given_terms: list[Term], data: st.DataObject) -> None:
    order = data.draw(st.permutations(given_terms))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(order) - 1, 1)), max_size=4)))
    groups = [group for group in (order[start:end] for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)) if group]
    sums = UserSums(DEFINITION)
    for group in groups:  # stored and read in between, as the stream does
        sums = UserSums(DEFINITION, sums.to_bytes())
        sums.add(group)
    latest = max(term.at for term in given_terms)
    assert sums.as_of == latest
    assert_same(cells_of(sums), by_formula(given_terms, latest))


@law
@given(terms, st.integers(0, 40 * DAY))
def test_moving_the_reference_time_is_one_multiplication(given_terms: list[Term], elapsed: int) -> None:
    sums = added(given_terms)
    before, start = cells_of(sums), sums.as_of
    sums.move(start + elapsed)
    session, long = math.exp2(-elapsed / (30 * MINUTE)), math.exp2(-elapsed / (14 * DAY))
    factors = [session, session, long, long, session]
    assert_same(cells_of(sums), {cluster: [v * f for v, f in zip(row, factors, strict=True)] for cluster, row in before.items()})
    assert sums.as_of == start + elapsed


@law
@given(terms, st.integers(1, DAY))
def test_the_reference_time_never_runs_back(given_terms: list[Term], elapsed: int) -> None:
    sums = added(given_terms)
    before = sums.to_bytes()
    sums.move(sums.as_of - elapsed)
    assert sums.to_bytes() == before


def test_nothing_added_is_nothing_changed() -> None:
    sums = added([Term("a", 0, NOW)])
    before = sums.to_bytes()
    sums.add([])
    assert sums.to_bytes() == before
    empty = UserSums(DEFINITION)
    empty.add([])
    assert (empty.as_of, empty.cluster_ids) == (0, [])


# -- records ----------------------------------------------------------------------------------------------------------------------


@law
@given(terms, reclusterings())
def test_what_is_stored_is_what_was_held_to_the_bit(given_terms: list[Term], history: list[Reclustering]) -> None:
    sums = added(given_terms)
    for change in history:
        sums.recluster(change)
    again = UserSums(DEFINITION, sums.to_bytes())
    assert (again.as_of, again.cluster_ids, again.lineage) == (sums.as_of, sums.cluster_ids, sums.lineage)
    np.testing.assert_array_equal(again.values, sums.values)
    assert again.to_bytes() == sums.to_bytes()


@law
@given(terms)
def test_serving_reads_the_columns_by_their_names(given_terms: list[Term]) -> None:
    sums = added(given_terms)
    rewards, expected = sums.rewards(), by_formula(given_terms, sums.as_of)
    assert rewards.cluster_ids == sums.cluster_ids
    assert rewards.as_of == sums.as_of
    for place, name in enumerate(SUM_NAMES):
        assert getattr(rewards.sums, name).tolist() == pytest.approx(
            [expected[one][place] for one in rewards.cluster_ids], rel=TOLERANCE, abs=1e-12
        )


@law
@given(terms, terms)
def test_sums_that_another_fold_made_are_gone_on_with(first: list[Term], second: list[Term]) -> None:
    left = added(first)
    taken_over = UserSums.of(DEFINITION, left.rewards(), left.lineage)
    taken_over.add(second)
    left.add(second)
    assert taken_over.to_bytes() == left.to_bytes()


def test_other_weights_or_half_lives_are_another_folding() -> None:
    heavier = SumsDefinition(
        scheme=RewardScheme(weights=WEIGHTS | {"click": 0.6}, minimum=-1.0, maximum=2.0), half_lives=DEFINITION.half_lives
    )
    slower = SumsDefinition(scheme=DEFINITION.scheme, half_lives=HalfLives(session=31 * MINUTE, long=14 * DAY))
    again = SumsDefinition(scheme=DEFINITION.scheme, half_lives=HalfLives(session=30 * MINUTE, long=14 * DAY))
    assert again.fingerprint == DEFINITION.fingerprint
    assert len({DEFINITION.fingerprint, heavier.fingerprint, slower.fingerprint}) == 3


# -- reclustering -----------------------------------------------------------------------------------------------------------------


@law
@given(terms, reclusterings())
def test_reclustering_conserves_totals(given_terms: list[Term], history: list[Reclustering]) -> None:
    sums = added(given_terms)
    total = sums.values.sum(axis=0)
    for change in history:
        sums.recluster(change)
    np.testing.assert_allclose(sums.values.sum(axis=0), total, rtol=TOLERANCE, atol=1e-12)


@law
@given(terms, reclusterings())
def test_the_same_reclusterings_again_change_nothing(given_terms: list[Term], history: list[Reclustering]) -> None:
    sums = added(given_terms)
    for change in history:
        sums.recluster(change)
    before = sums.to_bytes()
    for change in history:
        sums.recluster(change)
    assert sums.to_bytes() == before


@law
@given(terms)
def test_a_cluster_that_only_gets_another_name_keeps_its_sums_to_the_bit(given_terms: list[Term]) -> None:
    sums = added(given_terms)
    before = dict(zip(sums.cluster_ids, sums.values.copy(), strict=True))
    sums.recluster(Reclustering(user_id="u", effective_at=NOW, moves=[Move(from_cluster="a", to_cluster="z", share=1.0)]))
    for cluster_id, row in zip(sums.cluster_ids, sums.values, strict=True):
        np.testing.assert_array_equal(row, before["a" if cluster_id == "z" else cluster_id])
    assert len(sums.cluster_ids) == len(before)


@law
@given(terms, reclusterings(), st.data())
def test_events_before_and_after_a_reclustering_go_where_owners_now_says(
    given_terms: list[Term], history: list[Reclustering], data: st.DataObject
) -> None:
    """Reclusterings come in order, and each before what happened after it; what happened before it may come at any time."""
    queue = [(data.draw(st.integers(term.at, NOW)), 1, term) for term in given_terms]
    events: list[tuple[int, int, Term | Reclustering]] = [*queue, *((change.effective_at, 0, change) for change in history)]
    events.sort(key=lambda one: one[:2])
    sums = UserSums(DEFINITION)
    for _, _, one in events:
        if isinstance(one, Reclustering):
            sums.recluster(one)
        else:
            sums.add([one])
    assert_same(cells_of(sums), by_formula(given_terms, sums.as_of, history))


# -- bounds -----------------------------------------------------------------------------------------------------------------------


def test_clusters_that_have_faded_are_left_out_once_there_are_many() -> None:
    many = MAX_CLUSTERS // 5
    faded = [Term(f"old{number}", 0, NOW - 20 * 14 * DAY - MINUTE) for number in range(many)]
    sums = added(faded, [Term("alive", 0, NOW), Term("drawn", DRAW, NOW)])
    again = UserSums(DEFINITION, sums.to_bytes())
    assert sorted(again.cluster_ids) == ["alive", "drawn"]
    assert again.values[:, 0].sum() == 1.0


def test_few_clusters_are_kept_however_faded() -> None:
    sums = added([Term("old", 0, NOW - 20 * 14 * DAY - MINUTE), Term("alive", 0, NOW)])
    assert sorted(UserSums(DEFINITION, sums.to_bytes()).cluster_ids) == ["alive", "old"]


def test_a_user_with_every_cluster_that_is_allowed_is_stored_in_100_kilobytes() -> None:
    sums = added([Term(f"c{number}", number % 4, NOW) for number in range(MAX_CLUSTERS)])
    assert len(sums.to_bytes()) < 100_000
    assert len(UserSums(DEFINITION, sums.to_bytes()).cluster_ids) == MAX_CLUSTERS


def test_lineage_is_bounded_and_keeps_the_newest() -> None:
    sums = added([Term("c", 0, NOW)])
    for day in range(50):
        move = Move(from_cluster="x", to_cluster="y", share=1.0)
        sums.recluster(Reclustering(user_id="u", effective_at=NOW + day * DAY, moves=[move]))
    assert [change.effective_at for change in sums.lineage] == [NOW + day * DAY for day in range(20, 50)]
