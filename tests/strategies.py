"""Hypothesis strategies and small makers that every test shares. `law` is the one setting: deterministic, without deadline."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st

from bandit.model.exploration import Exploration
from bandit.model.featurize import FEATURE_NAMES, FEATURE_VERSION, featurize
from bandit.model.linear_model import LinearModel, Manifest, sha256, weight_count
from bandit.model.vowpal import Learner
from bandit.ope.gate import Gate
from bandit.policy.sampling import draw_counts
from bandit.policy.scores import Candidates
from bandit.settings.sections import GateSettings, PolicySettings, TrainingSettings
from bandit.types import MICROSECONDS_PER_DAY, SUM_NAMES, Prior, Profile, Rate, Sums

NOW = 1_760_000_000_000_000  # UTC microseconds: a day in October 2025
EMPTY_PRIOR = Prior(rate=Rate(mean=0.1, strength=8.0))

_EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "50"))  # `make mutants` runs each law thousands of times, with fewer
law = settings(
    derandomize=True, deadline=None, database=None, max_examples=_EXAMPLES, phases=(Phase.explicit, Phase.generate, Phase.shrink)
)


def systematic(quotas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each is drawn, as a request draws clusters."""
    return np.array(draw_counts(quotas.tolist(), list(rng.random(len(quotas)))), np.int64)


def exploring(**changed: float) -> Exploration:
    """As the settings have it, but for these."""
    return dataclasses.replace(PolicySettings().exploration(), **changed)


def learner(**changed: object) -> Learner:
    """Likewise."""
    return dataclasses.replace(TrainingSettings().learner(), **changed)


def thresholds(**changed: float) -> Gate:
    """Likewise."""
    return dataclasses.replace(GateSettings().gate(), **changed)


def arrays(elements: st.SearchStrategy[float], n: int, dtype: type = np.float64) -> st.SearchStrategy[np.ndarray]:
    return st.lists(elements, min_size=n, max_size=n).map(lambda values: np.array(values, dtype))


def positive(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers spread evenly over orders of magnitude."""
    return st.floats(np.log(low), np.log(high)).map(lambda exponent: float(np.clip(np.exp(exponent), low, high)))


sizes = st.integers(1, 20)
ks = st.integers(1, 60)


def scores(n: int) -> st.SearchStrategy[np.ndarray]:
    """Any sign; ties are frequent."""
    return arrays(st.one_of(st.floats(-10.0, 10.0), st.sampled_from([-1.0, 0.0, 0.25, 1.0])), n)


def budgets(n: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(positive(1e-12, 1e3), n)


def weights(n: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(st.one_of(positive(1e-6, 1e6), st.sampled_from([1.0, 2.0])), n)


def caps(n: int) -> st.SearchStrategy[np.ndarray]:
    """Whole as in serving, or fractional."""
    return st.one_of(arrays(st.integers(1, 10).map(float), n), arrays(positive(0.01, 10.0), n))


@st.composite
def clusterings(draw: st.DrawFn, items: int, days: int) -> list[list[frozenset[str]]]:
    """How one user's items were clustered on each of some days; an item may be missing, and most stay where they were the day before."""
    result = []
    label = [draw(st.integers(-1, 4)) for _ in range(items)]
    for _ in range(days):
        label = [draw(st.one_of(st.just(before), st.just(before), st.integers(-1, 4))) for before in label]
        groups = {number: frozenset(f"i{item:02}" for item in range(items) if label[item] == number) for number in set(label) - {-1}}
        result.append([groups[number] for number in draw(st.permutations(sorted(groups)))])
    return result


@st.composite
def weighted(draw: st.DrawFn) -> tuple[np.ndarray, int, np.ndarray]:
    """Arguments of `proportional`."""
    n = draw(sizes)
    return draw(weights(n)), draw(ks), draw(caps(n))


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Arguments of `budgeted`."""
    n = draw(sizes)
    return draw(scores(n)), draw(budgets(n)), draw(ks), draw(caps(n))


def greedy_value(scores: np.ndarray, k: float, caps: np.ndarray) -> float:
    """Largest sum(lambda * scores) over 0 <= lambda <= caps, sum(lambda) = min(k, sum(caps))."""
    best = np.argsort(-scores)
    taken = np.diff(np.minimum(np.cumsum(caps[best]), k), prepend=0.0)
    return float(taken @ scores[best])


@st.composite
def profiles(draw: st.DrawFn, min_clusters: int = 0, max_clusters: int = 8) -> Profile:
    n, types = draw(st.integers(min_clusters, max_clusters)), draw(st.integers(0, 3))
    counts = draw(arrays(st.integers(0, 5), n, np.int64))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    total = int(offsets[-1])
    amounts = st.one_of(st.just(0.0), positive(1e-12, 1e6))
    return Profile(
        cluster_ids=[f"c{index}" for index in draw(st.permutations(range(n)))],
        topic_ids=draw(arrays(st.integers(-1, 5), n, np.int64)),
        topic_history=draw(arrays(st.floats(-1.0, 2.0), n)),
        item_counts=draw(arrays(st.integers(0, 1000), n, np.int64)),
        action_types=[f"action{index}" for index in range(types)],
        action_counts=draw(arrays(amounts, n * types)).reshape(n, types),
        importance=draw(arrays(amounts, n)),
        last_action_at=draw(arrays(st.integers(0, 2 * NOW), n, np.int64)),
        query_items=[f"i{index}" for index in range(total)],
        query_weights=draw(arrays(positive(1e-3, 1e3), total)),
        query_offsets=offsets,
    )


@st.composite
def evidence(draw: st.DrawFn, n: int) -> Sums:
    """Decayed sums of n clusters; each reward within [-1, 2] per impression, as the default scheme clips it."""
    impressions = st.one_of(st.just(0.0), positive(1e-9, 1e6))
    session, long = draw(arrays(impressions, n)), draw(arrays(impressions, n))
    earned = [impressions * draw(arrays(st.floats(-1.0, 2.0), n)) for impressions in (session, long)]
    return Sums(np.array([session, earned[0], long, earned[1], draw(arrays(impressions, n))]))


@st.composite
def priors(draw: st.DrawFn) -> Prior:
    rate = Rate(mean=draw(st.floats(-0.5, 1.0)), strength=draw(positive(1e-3, 1e3)))
    return Prior(rate=rate, topic_means=draw(st.dictionaries(st.integers(-1, 5), st.floats(-0.5, 1.0), max_size=5)))


@st.composite
def users(draw: st.DrawFn, min_clusters: int = 0) -> tuple[Profile, Sums, Prior]:
    profile = draw(profiles(min_clusters))
    return profile, draw(evidence(len(profile))), draw(priors())


@st.composite
def decisions(draw: st.DrawFn) -> tuple[Candidates, int, np.ndarray]:
    """Arguments of `plan`: candidates with a model, k, caps as serving makes them (whole)."""
    profile, sums, prior = draw(users(min_clusters=1))
    model = linear_model(np.random.default_rng(draw(st.integers(0, 1000))).normal(0.0, 0.05, weight_count(len(FEATURE_NAMES))), prior)
    exploration = exploring(optimism=draw(st.floats(0.0, 3.0)), budget=draw(positive(1e-4, 1.0)))
    caps_of_n = draw(arrays(st.integers(1, 10).map(float), len(profile)))
    return candidates_of(profile, sums, prior, model, exploration), draw(ks), caps_of_n


def candidates_of(
    profile: Profile, sums: Sums, prior: Prior, model: LinearModel | None = None, exploration: Exploration | None = None
) -> Candidates:
    return Candidates(
        actions=profile.action_counts.sum(axis=1),
        importance=profile.importance,
        evidence=sums,
        features=featurize(profile, sums, prior, NOW, {}),
        prior=prior,
        model=model,
        exploration=exploration or exploring(),
    )


def simple_profile(n: int) -> Profile:
    """n clusters in one topic, alike in everything but their ids and their age."""
    return Profile(
        cluster_ids=[f"c{index}" for index in range(n)],
        topic_ids=np.zeros(n, np.int64),
        topic_history=np.zeros(n),
        item_counts=np.full(n, 10),
        action_types=["repin", "click"],
        action_counts=np.ones((n, 2)),
        importance=np.ones(n),
        last_action_at=NOW - np.arange(n) * MICROSECONDS_PER_DAY,
        query_items=[f"i{index}" for index in range(n)],
        query_weights=np.ones(n),
        query_offsets=np.arange(n + 1),
    )


def simple_evidence(impressions: list[float], reward: list[float], draws: list[float] | None = None) -> Sums:
    """The same sums for the session and for the long run."""
    sums, earned = np.array(impressions, np.float64), np.array(reward, np.float64)
    return Sums(np.array([sums, earned, sums, earned, np.zeros(len(sums)) if draws is None else draws]))


def sums_with(sums: Sums, **columns: np.ndarray) -> Sums:
    """The same sums, but those of these names."""
    return Sums(np.array([columns.get(name, getattr(sums, name)) for name in SUM_NAMES]))


def reordered(profile: Profile, rows: np.ndarray) -> Profile:
    """The same clusters in another order."""
    spans = [slice(profile.query_offsets[row], profile.query_offsets[row + 1]) for row in rows]
    queries = [(profile.query_items[span], profile.query_weights[span]) for span in spans]
    per_cluster = ("topic_ids", "topic_history", "item_counts", "action_counts", "importance", "last_action_at")
    return dataclasses.replace(
        profile,
        cluster_ids=[profile.cluster_ids[row] for row in rows],
        query_items=[item for items, _ in queries for item in items],
        query_weights=np.concatenate([np.zeros(0), *(item_weights for _, item_weights in queries)]),
        query_offsets=np.concatenate(([0], np.cumsum([len(items) for items, _ in queries], dtype=np.int64))),
        **{name: getattr(profile, name)[rows] for name in per_cluster},
    )


def linear_model(flat: np.ndarray, prior: Prior = EMPTY_PRIOR, **manifest: object) -> LinearModel:
    """A model of today's features with these weights; `manifest` overrides what the manifest says."""
    data = np.asarray(flat, "<f4").tobytes()
    fields = {
        "feature_version": FEATURE_VERSION,
        "feature_names": list(FEATURE_NAMES),
        "trained_from": NOW - MICROSECONDS_PER_DAY,
        "trained_until": NOW,
        "rows": 1000,
        "impressions": 4000.0,
        "learner": "-q cc",
        "prior_mean": prior.rate.mean,
        "prior_strength": prior.rate.strength,
        "topic_means": prior.topic_means,
        "exploration": exploring(),
        "weights_sha256": sha256(data),
    }
    return LinearModel(manifest=Manifest(**{**fields, **manifest}), weights=data)


def random_model(seed: int, prior: Prior = EMPTY_PRIOR) -> LinearModel:
    return linear_model(np.random.default_rng(seed).normal(0.0, 0.05, weight_count(len(FEATURE_NAMES))), prior)
