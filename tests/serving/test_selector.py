"""The selector through the real path: Feast's online store, the decision log in Redis, the promoted model."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from bandit.errors import DependencyUnavailableError, InvalidValueError
from bandit.model.featurize import FEATURE_VERSION, featurize
from bandit.policy.decide import Choice, draw_queries
from bandit.policy.sampling import draw_counts
from bandit.policy.scores import POLICIES, Candidates, Plan, plan
from bandit.policy.splitmix import SplitMix64
from bandit.records import Decision
from bandit.rewards.decay import align
from bandit.types import Prior, Rate
from serving import QuerySelector, Selection
from serving.features.reader import FeatureReader
from tests.served_world import EMPTY, ITEMS, QUIET, REWARDED, UNKNOWN, Served, hand_over
from tests.strategies import linear_model, random_model
from tests.tables_made import KEYS, NOW

K = 8
FALLBACK_ITEMS = {"x": ["x1", "x2", "x3"], "y": ["y1"]}


@pytest.fixture
def selector(served: Served) -> Iterator[QuerySelector]:
    with served.open() as opened:
        yield opened


def only(served: Served) -> Decision:
    (decision,) = served.decisions()
    return decision


def per_cluster(selection: Selection) -> Counter[str]:
    return Counter(query.cluster_id for query in selection.queries)


def until(happened: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.01)
    return False


def test_there_are_five_policies() -> None:
    assert len(POLICIES) == 5


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_chooses_k_queries_as_its_quotas_say(served: Served, policy: str) -> None:
    hand_over(served.redis, "1", random_model(3))
    with served.open(policy) as selector:
        for seed, user in enumerate((*REWARDED, QUIET)):
            selection = selector.select(user, K, now=NOW, seed=seed)
            assert (len(selection.queries), selection.policy, selection.reason) == (K, policy, "")
            assert (selection.logged, selection.degraded) == (True, False)
            assert len({query.item_id for query in selection.queries}) == K
            assert all(0.0 < query.propensity <= 1.0 for query in selection.queries)
            assert all(query.item_id.startswith(f"{query.cluster_id}-i") for query in selection.queries)
            assert sum(selection.quotas.values()) == pytest.approx(K, abs=1e-9)
            counts = per_cluster(selection)
            assert all(math.floor(quota) <= counts[cluster] <= math.ceil(quota) for cluster, quota in selection.quotas.items())
            assert selection.model_version == "1"
        assert {decision.policy for decision in served.decisions()} == {policy}


@pytest.mark.parametrize("policy", ["query_reward", "bandit"])
def test_the_log_holds_what_was_served(served: Served, policy: str) -> None:
    model = random_model(4, Prior(rate=Rate(mean=0.2, strength=8.0), topic_means={0: 0.3, 1: 0.15}))
    hand_over(served.redis, "7", model)
    with served.open(policy) as selector:
        selection = selector.select("u1", K, {"surface": "home"}, now=NOW, seed=11)
        settings = selector._settings
    decision = only(served)
    profile, rewards = FeatureReader(served.folder / "feature_repo", served.redis_url, timeout=5.0).read("u1")
    assert profile is not None
    evidence = align(profile, rewards, NOW, settings.reward.half_lives())
    features = featurize(profile, evidence, model.prior, NOW, {"surface": "home"})
    np.testing.assert_array_equal(decision.feature_matrix(), features)
    caps = np.minimum(np.diff(profile.query_offsets), settings.policy.max_queries_per_cluster).astype(float)
    candidates = Candidates(
        actions=profile.action_counts.sum(axis=1),
        importance=profile.importance,
        evidence=evidence,
        features=decision.feature_matrix(),
        prior=model.prior,
        model=model,
        exploration=settings.policy.exploration(),
    )
    again = plan(policy, candidates, K, caps)
    assert (decision.quotas, decision.scores, decision.caps) == (again.quotas.tolist(), again.scores.tolist(), caps.tolist())
    assert decision.cluster_ids == profile.cluster_ids
    assert dict(zip(decision.cluster_ids, decision.quotas, strict=True)) == selection.quotas
    assert decision.queries == selection.queries
    told = (decision.decision_id, decision.user_id, decision.decided_at, decision.policy, decision.model_version, decision.k, decision.seed)
    assert told == (selection.decision_id, "u1", NOW, policy, "7", K, 11)
    assert (decision.feature_version, decision.context, decision.degraded) == (FEATURE_VERSION, {"surface": "home"}, False)
    assert served.redis.xlen(KEYS.of_user("u1").decisions) == 1


def test_a_repeated_decision_is_the_same_to_the_byte(served: Served) -> None:
    hand_over(served.redis, "1", random_model(3))
    for _ in range(2):
        with served.open("bandit") as selector:
            selector.select("u0", K, {"a": "b"}, now=NOW, seed=5)
    first, second = served.records()
    assert first == second


def test_the_seed_alone_decides_the_draw(selector: QuerySelector) -> None:
    drawn = {seed: [query.item_id for query in selector.select("u0", K, now=NOW, seed=seed).queries] for seed in range(10)}
    assert drawn == {seed: [query.item_id for query in selector.select("u0", K, now=NOW, seed=seed).queries] for seed in range(10)}
    assert len({tuple(items) for items in drawn.values()}) > 5


def test_without_a_seed_and_a_time_each_call_has_its_own(served: Served, selector: QuerySelector) -> None:
    before = time.time_ns() // 1000
    ids = {selector.select("u0", K).decision_id for _ in range(20)}
    decisions = served.decisions()
    assert len(ids) == 20
    assert len({decision.seed for decision in decisions}) == 20
    assert all(before <= decision.decided_at <= time.time_ns() // 1000 for decision in decisions)


def test_caps_are_kept_and_clusters_that_they_do_not_name_are_out(served: Served, selector: QuerySelector) -> None:
    caps = {"u0-c0": 2, "u0-c1": 3, "u0-c2": 9, "u0-c3": 0, "elsewhere": 5}
    seen: Counter[str] = Counter()
    for seed in range(30):
        selection = selector.select("u0", 5, caps=caps, now=NOW, seed=seed)
        counts = per_cluster(selection)
        assert counts.total() == 5
        assert set(selection.quotas) == {"u0-c0", "u0-c1", "u0-c2"}
        assert set(counts) <= set(selection.quotas)
        assert (counts["u0-c0"] <= 2, counts["u0-c1"] <= 3, counts["u0-c2"] <= ITEMS[2]) == (True, True, True)
        seen += counts
    assert set(seen) == {"u0-c0", "u0-c1", "u0-c2"}
    assert served.decisions()[0].caps == [2.0, 3.0, 4.0]


def test_no_cluster_left_is_said(served: Served, selector: QuerySelector) -> None:
    selection = selector.select("u0", 5, caps={"u0-c0": 0, "elsewhere": 3}, now=NOW, seed=1)
    assert (list(selection.queries), selection.reason, selection.degraded) == ([], "no cluster may be queried", False)
    assert served.decisions() == []


def test_fewer_queries_than_wanted_are_said(selector: QuerySelector) -> None:
    selection = selector.select("u0", 100, now=NOW, seed=1)
    assert len(selection.queries) == sum(ITEMS)
    assert selection.reason == f"{sum(ITEMS)} of 100 queries: the clusters have no more"
    assert (selection.degraded, selection.logged) == (False, True)
    assert {query.propensity for query in selection.queries} == {1.0}


@pytest.mark.parametrize(("user", "reason"), [(UNKNOWN, "unknown user"), (EMPTY, "the user has no clusters")])
def test_nothing_to_choose_from_is_said(served: Served, selector: QuerySelector, user: str, reason: str) -> None:
    selection = selector.select(user, K, now=NOW, seed=1)
    assert (list(selection.queries), selection.reason, selection.decision_id) == ([], reason, "")
    assert (selection.degraded, selection.logged) == (False, False)
    assert served.decisions() == []


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", None])
def test_k_is_a_whole_number_above_zero(selector: QuerySelector, k: object) -> None:
    with pytest.raises(InvalidValueError, match="k: expected a whole number"):
        selector.select("u0", k)  # type: ignore[arg-type]


@pytest.mark.parametrize("user", ["", None, 3])
def test_a_user_has_an_id(selector: QuerySelector, user: object) -> None:
    with pytest.raises(InvalidValueError, match="user_id: expected a string"):
        selector.select(user, K)  # type: ignore[arg-type]


def test_items_are_drawn_as_often_as_their_propensities_say(served: Served) -> None:
    profile, _ = FeatureReader(served.folder / "feature_repo", served.redis_url, timeout=5.0).read("u2")
    assert profile is not None
    quotas, draws = [3.3, 0.2, 1.5, 0.75, 1.25, 1.0], 4000
    rows, planned = range(len(quotas)), Plan(scores=np.zeros(len(quotas)), quotas=np.array(quotas))
    seen: Counter[str] = Counter()
    propensity: dict[str, float] = {}
    for seed in range(draws):
        rng = SplitMix64(seed)
        choice = Choice(plan=planned, quotas=quotas, counts=draw_counts(quotas, rng.random(len(quotas))))
        queries = draw_queries(profile, rows, choice, rng)
        assert len(queries) == 8
        for query in queries:
            seen[query.item_id] += 1
            assert propensity.setdefault(query.item_id, query.propensity) == query.propensity
    assert set(propensity) == set(profile.query_items)
    assert sum(propensity.values()) == pytest.approx(sum(quotas))
    for item, p in propensity.items():
        deviation = math.sqrt(draws * p * (1.0 - p))
        assert abs(seen[item] - draws * p) <= 4.5 * deviation + 1e-6, item


def test_the_bandit_without_a_model_does_what_query_reward_does(served: Served) -> None:
    chosen = {}
    for policy in ("bandit", "query_reward"):
        with served.open(policy) as selector:
            chosen[policy] = selector.select("u0", K, now=NOW, seed=2)
            assert selector.model_version == ""
    assert chosen["bandit"] == chosen["query_reward"]
    first, second = served.records()
    assert first == second
    assert {(decision.policy, decision.model_version) for decision in served.decisions()} == {("query_reward", "")}


def test_a_promoted_model_serves_within_a_second(served: Served) -> None:
    with served.open("bandit") as selector:
        before = selector.select("u0", K, now=NOW, seed=2)
        for version in ("1", "2"):
            hand_over(served.redis, version, random_model(int(version)))
            assert until(lambda version=version: selector.model_version == version, 1.0)
            after = selector.select("u0", K, now=NOW, seed=2)
            assert (after.policy, after.model_version) == ("bandit", version)
            assert after.quotas != before.quotas
            before = after


def corrupted(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("fault", ["flipped", "missing", "other features", "not a pointer"])
def test_a_model_that_cannot_be_used_is_refused(served: Served, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = random_model(1), random_model(2)
    hand_over(served.redis, "1", good)
    with served.open("bandit", model_poll_seconds=0.02) as selector:
        before = selector.select("u0", K, now=NOW, seed=2)
        if fault == "other features":
            hand_over(served.redis, "2", linear_model(np.zeros(105), feature_version=FEATURE_VERSION + 1))
        elif fault == "not a pointer":
            served.redis.set(KEYS.champion, b"\xc1 nonsense")
        else:
            hand_over(served.redis, "2", bad, data=corrupted(bad.to_bytes()) if fault == "flipped" else b"")
        assert selector.refresh_model() == "1"
        time.sleep(0.2)  # ten more looks
        assert selector.select("u0", K, now=NOW, seed=2) == before
        assert len([record for record in caplog.records if "refused the promoted model" in record.message]) == 1
        hand_over(served.redis, "3", random_model(3))
        assert selector.refresh_model() == "3"
    with served.open("bandit") as selector:  # and who starts with a bad model falls back
        hand_over(served.redis, "4", bad, data=b"")
    with served.open("bandit") as selector:
        assert selector.select("u0", K, now=NOW, seed=2).policy == "query_reward"


def test_redis_away_answers_from_the_last_profile_and_recovers(served: Served) -> None:
    hand_over(served.redis, "1", random_model(1))
    with served.open("bandit", deadline_ms=150.0) as selector:
        before = selector.select("u0", K, now=NOW, seed=2)
        assert before.logged
        with served.halted():
            for _ in range(3):
                start = time.monotonic()
                during = selector.select("u0", K, now=NOW, seed=2)
                assert time.monotonic() - start < 0.15 + 0.6
                assert (during.degraded, during.logged) == (True, False)
                assert "unavailable" in during.reason
                assert (during.queries, during.quotas, during.model_version) == (before.queries, before.quotas, "1")
        after = None

        def recovered() -> bool:
            nonlocal after
            after = selector.select("u0", K, now=NOW, seed=2)
            return not after.degraded

        assert until(recovered, 2.0)
        assert after == before
        last = served.decisions()[-1]
        assert last.degraded is False


def test_the_callers_clusters_serve_a_user_who_was_not_seen_before(served: Served) -> None:
    with served.open("bandit", deadline_ms=100.0) as selector:
        selector.select("u1", K, now=NOW, seed=2)
        with served.halted():
            selection = selector.select("u0", 3, fallback=FALLBACK_ITEMS, now=NOW, seed=2)
            seen_before = selector.select("u1", K, fallback=FALLBACK_ITEMS, now=NOW, seed=2)
            nothing = selector.select("u2", 3, now=NOW, seed=2)
        assert (selection.degraded, selection.logged, len(selection.queries)) == (True, False, 3)
        assert {query.cluster_id for query in selection.queries} <= set(FALLBACK_ITEMS)
        assert all(query.item_id in FALLBACK_ITEMS[query.cluster_id] for query in selection.queries)
        assert sum(selection.quotas.values()) == pytest.approx(3.0)
        assert all(query.cluster_id.startswith("u1-") for query in seen_before.queries)
        assert (list(nothing.queries), nothing.degraded, nothing.logged) == ([], True, False)
        assert "unavailable" in nothing.reason


def test_fallback_clusters_do_not_replace_features_that_can_be_read(selector: QuerySelector) -> None:
    assert selector.select("u0", K, fallback=FALLBACK_ITEMS, now=NOW, seed=1) == selector.select("u0", K, now=NOW, seed=1)
    assert selector.select(UNKNOWN, K, fallback=FALLBACK_ITEMS, now=NOW, seed=1).reason == "unknown user"


def test_profiles_are_remembered_up_to_a_bound(served: Served) -> None:
    with served.open(deadline_ms=100.0, cached_profiles=2) as selector:
        for user in ("u0", "u1", "u0", "u2"):
            selector.select(user, K, now=NOW, seed=1)
        with served.halted():
            answered = {user: len(selector.select(user, K, now=NOW, seed=1).queries) for user in REWARDED}
    assert answered == {"u0": K, "u1": 0, "u2": K}


def test_threads_log_every_decision_once(served: Served) -> None:
    hand_over(served.redis, "1", random_model(1))
    threads, each = 8, 200
    selections: list[list[Selection]] = [[] for _ in range(threads)]
    with served.open("bandit") as selector:

        def work(number: int) -> None:
            user = (*REWARDED, QUIET)[number % 4]
            selections[number] += [selector.select(user, K, now=NOW + step, seed=number * each + step) for step in range(each)]

        running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        made = {selection.decision_id: selection for group in selections for selection in group}
        assert len(made) == threads * each
        assert not any(selection.degraded for selection in made.values())
        decisions = served.decisions()
        assert sorted(decision.decision_id for decision in decisions) == sorted(made)
        for decision in decisions:
            assert decision.queries == made[decision.decision_id].queries
        some = decisions[17]
        assert selector.select(some.user_id, K, now=some.decided_at, seed=some.seed).queries == some.queries  # threads share no state


def test_decisions_are_messagepack(served: Served, selector: QuerySelector) -> None:
    selector.select("u0", K, now=NOW, seed=1)
    (record,) = served.records()
    assert set(msgspec.msgpack.decode(record)) == set(Decision.__struct_fields__)


def test_redis_away_at_open_is_one_clear_error(served: Served) -> None:
    file = served.settings_file("uniform")
    file.write_text(file.read_text().replace(served.redis_url, "redis://user:s3cret@127.0.0.1:1/0"))
    with pytest.raises(DependencyUnavailableError, match=r"redis://127\.0\.0\.1:1/0") as caught:
        QuerySelector.open(file)
    assert "s3cret" not in str(caught.value)
