"""Where policies meet: the project's own, through its own fold and learner, beside textbook rivals, in one of the worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.model.featurize import FEATURE_NAMES, featurize
from bandit.model.learning import Examples, learn
from bandit.model.linear_model import LinearModel
from bandit.policy.scores import FALLBACK, Candidates, plan
from bandit.rewards.decay import HalfLives, align, decay
from bandit.rewards.prior import fit_prior
from bandit.rewards.scheme import IMPRESSION, RewardScheme
from bandit.rewards.sums import SumsDefinition
from bandit.settings.sections import PolicySettings, TrainingSettings
from bandit.types import ClusterRewards, Floats, Floats32, Ints, Prior, Profile, Rate, Sums
from feature_repo import names
from feature_repo.names import SUMS
from tests.strategies import learner, systematic
from tests.worlds import QUERIES, ROUND, DriftingWorld, Outcome, World, best, happen, now, profiles, worth
from training.features.decayed_sums import sums
from training.logs.schemas import FEEDBACK, TIME

AT_ONCE, LATE = 1, 24  # rounds until feedback is folded; 1 is before the next decision
HALF_LIVES = HalfLives(session=24 * ROUND, long=400 * ROUND)
SCHEME = RewardScheme(weights={"repin": 1.0, "hide": -1.0}, minimum=-1.0, maximum=1.0)
DEFINITION = SumsDefinition(scheme=SCHEME, half_lives=HALF_LIVES)
SETTINGS, TRAINING = PolicySettings(), TrainingSettings()
TRAIN_EVERY = 25  # rounds
SEED = 1
OWN = ("action_count", "query_reward", "bandit")
RIVALS = ("thompson", "thompson_per_query", "ucb", "linucb")
PLAYERS = [(policy, lag) for lag in (AT_ONCE, LATE) for policy in (*OWN, *RIVALS)]
ROUNDS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a player sees of a round: time, all users' clusters, and the folded sums of its own feedback, each (users, places)."""

    at: int
    there: np.ndarray
    profiles: Sequence[Profile]
    sums: dict[str, Floats]

    def evidence(self, user: int) -> Sums:
        profile, there = self.profiles[user], self.there[user]
        rewards = ClusterRewards(
            cluster_ids=profile.cluster_ids,
            as_of=self.at,
            sums=Sums(np.array([self.sums[name][user, there] for name in SUMS])),
        )
        return align(profile, rewards, self.at, HALF_LIVES)

    def prior(self) -> Prior:
        topics = np.concatenate([profile.topic_ids for profile in self.profiles])
        reward, impressions = (self.sums[name][self.there] for name in (names.REWARD_LONG, names.IMPRESSIONS_LONG))
        return fit_prior(topics, reward, impressions, SETTINGS.prior_strength)


class Player(Protocol):
    """Draws queries for all users, and learns from what its draws brought, once that arrives."""

    def draw(self, seen: Situation, rng: np.random.Generator) -> tuple[Ints, Floats32]:
        """Draws (users, places) and features (users, places, d)."""

    def learn(self, outcome: Outcome) -> None: ...


class Own:
    """A policy of the project, as `QuerySelector` plays it, and a model of all rows trained anew every 25 rounds, as `train` does.

    Only `training.minimum_rows` is left out: it suits a population, not 40 users. With it the bandit gets 0.882 and 0.791 (seed 1).
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._model: LinearModel | None = None
        self._outcomes: list[Outcome] = []
        self._rounds = 0

    def draw(self, seen: Situation, rng: np.random.Generator) -> tuple[Ints, Floats32]:
        self._rounds += 1
        if self._policy == "bandit" and self._rounds % TRAIN_EVERY == 0 and self._outcomes:
            self._model = train(self._outcomes, seen.prior())
        policy = FALLBACK if self._policy == "bandit" and self._model is None else self._policy
        prior = self._model.prior if self._model else Prior(rate=Rate(mean=0.1, strength=SETTINGS.prior_strength))
        draws = np.zeros(seen.there.shape, np.int64)
        features = np.zeros((*seen.there.shape, len(FEATURE_NAMES)), np.float32)
        for user, profile in enumerate(seen.profiles):
            there, evidence = seen.there[user], seen.evidence(user)
            if self._policy == "bandit":  # the only one that looks at them
                features[user, there] = featurize(profile, evidence, prior, seen.at, {})
            candidates = Candidates(
                actions=profile.action_counts.sum(axis=1),
                importance=profile.importance,
                evidence=evidence,
                features=features[user, there],
                prior=prior,
                model=self._model,
                exploration=SETTINGS.exploration(),
            )
            planned = plan(policy, candidates, QUERIES, np.full(len(profile), float(QUERIES)))
            draws[user, there] = systematic(planned.quotas, rng)
        return draws, features

    def learn(self, outcome: Outcome) -> None:
        if self._policy == "bandit":
            self._outcomes.append(outcome)


def train(outcomes: Sequence[Outcome], prior: Prior) -> LinearModel:
    """The model that `training.models.train` would learn of these rows."""
    examples = Examples(
        features=np.concatenate([outcome.features for outcome in outcomes]),
        reward=np.concatenate([outcome.rate * outcome.impressions for outcome in outcomes]),
        impressions=np.concatenate([outcome.impressions for outcome in outcomes]).astype(np.float64),
        decided_at=np.concatenate([np.full(len(outcome.features), outcome.at) for outcome in outcomes]),
    )
    return learn(examples, prior, SETTINGS.exploration(), learner(options=TRAINING.learner_options, seed=TRAINING.seed))


class Thompson:
    """The best of a sample of every cluster's beta posterior, whose prior is the mean of all clusters.

    Textbook: one sample a decision, for all of its queries. `samples` of QUERIES gives each query one of its own, and so the decision
    variety. Source: Thompson 1933; Chapelle and Li 2011.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def draw(self, seen: Situation, rng: np.random.Generator) -> tuple[Ints, Floats32]:
        mean, strength = max(seen.prior().rate.mean, 0.01), SETTINGS.prior_strength
        good = np.maximum(seen.sums[names.REWARD_LONG], 0.0)
        bad = np.maximum(seen.sums[names.IMPRESSIONS_LONG] - good, 0.0)
        posterior = strength * mean + good, strength * (1.0 - mean) + bad
        draws = [best(np.where(seen.there, rng.beta(*posterior), -np.inf)) // self._samples for _ in range(self._samples)]
        return np.sum(draws, axis=0), no_features(seen)

    def learn(self, outcome: Outcome) -> None:
        """Its posterior is the fold's."""


class Ucb:
    """UCB1 on decayed rates; a cluster without impressions goes first. Source: Auer, Cesa-Bianchi and Fischer 2002."""

    width = 0.35  # of the confidence bound; of 0.15, 0.25, 0.35 and 0.5 none is better by more than 0.02, at once or late

    def draw(self, seen: Situation, rng: np.random.Generator) -> tuple[Ints, Floats32]:
        impressions = seen.sums[names.IMPRESSIONS_LONG]
        shown = np.maximum(impressions, 1e-6)
        total = np.log(impressions.sum(axis=1, keepdims=True) + 1.0)
        bound = seen.sums[names.REWARD_LONG] / shown + self.width * np.sqrt(total / shown)
        scores = np.where(impressions < 1e-6, 1e9 + rng.random(shown.shape), bound)
        return best(np.where(seen.there, scores, -np.inf)), no_features(seen)

    def learn(self, outcome: Outcome) -> None:
        """It keeps nothing but the fold's sums."""


class LinUcb:
    """One ridge regression on the features that the bandit has, and its confidence ellipsoid. Source: Li et al. 2010."""

    width = 0.1  # of 0.03, 0.1, 0.3 and 1 none is better by more than 0.02, at once or late

    def __init__(self) -> None:
        self._gram = np.eye(len(FEATURE_NAMES) + 1)
        self._moment = np.zeros(len(FEATURE_NAMES) + 1)

    def draw(self, seen: Situation, rng: np.random.Generator) -> tuple[Ints, Floats32]:
        prior, features = seen.prior(), no_features(seen)
        for user, profile in enumerate(seen.profiles):
            features[user, seen.there[user]] = featurize(profile, seen.evidence(user), prior, seen.at, {})
        x = with_constant(features)
        inverse = np.linalg.inv(self._gram)
        scores = x @ (inverse @ self._moment) + self.width * np.sqrt(((x @ inverse) * x).sum(axis=-1))
        return best(np.where(seen.there, scores, -np.inf)), features

    def learn(self, outcome: Outcome) -> None:
        x, impressions = with_constant(outcome.features), outcome.impressions
        self._gram += (x * impressions[:, None]).T @ x
        self._moment += x.T @ (impressions * outcome.rate)


def no_features(seen: Situation) -> Floats32:
    return np.zeros((*seen.there.shape, len(FEATURE_NAMES)), np.float32)


def with_constant(features: Floats32) -> Floats:
    return np.concatenate([np.ones((*features.shape[:-1], 1)), features], axis=-1)


class Ledger:
    """Decayed sums of all players, each (players, users, places): only news are folded, then added to what has faded.

    The law that allows it is in `training/features/decayed_sums.py`: parts of a log merge by addition, time passes by one multiplication.
    """

    def __init__(self, world: World, players: int) -> None:
        self.sums = {name: np.zeros((players, *world.there.shape)) for name in SUMS}
        self._user_ids = pa.array([f"{player}/{user}" for player in range(players) for user in range(len(world.there))])
        self._connection = ibis.duckdb.connect(threads=1)  # the order of additions, and with it the last bit, is fixed

    def fade(self, newborn: np.ndarray) -> None:
        """Let one round pass."""
        for name, total in self.sums.items():
            np.multiply(total, decay(ROUND, HALF_LIVES.long if name.endswith("long") else HALF_LIVES.session), out=total)
            total[:, newborn] = 0.0

    def add(self, world: World, arrived: Sequence[tuple[int, Outcome]], drawn: Sequence[tuple[int, Outcome]]) -> None:
        """Fold the feedback that arrived and the draws that were made, of all players at once."""
        events = [self._rows(world, arrived, action) for action in SCHEME.action_types]
        action = pa.array(np.repeat(SCHEME.action_types, [len(rows) for rows in events]))
        rows = pa.concat_tables(events)
        event_ids = pa.array(np.arange(len(rows))).cast(pa.string())
        feedback = pa.table(
            {
                "event_id": event_ids,
                "decision_id": rows["user_id"],
                "user_id": rows["user_id"],
                "cluster_id": rows["cluster_id"],
                "query_id": rows["cluster_id"],
                "item_id": event_ids,
                "action": action,
                "occurred_at": rows["at"],
            },
            FEEDBACK,
        )
        draws = self._rows(world, drawn, "draw").rename_columns({"at": "drawn_at"})
        news = sums(ibis.memtable(feedback), ibis.memtable(draws), as_of=now(world), definition=DEFINITION)
        folded = self._connection.to_pyarrow(news)
        cells = pc.index_in(folded["cluster_id"].combine_chunks(), value_set=pa.array(world.cluster_ids.ravel()))
        alive = cells.is_valid().to_numpy(zero_copy_only=False)  # the rest is late feedback of clusters that are no more
        users = pc.index_in(folded["user_id"].combine_chunks(), value_set=self._user_ids).to_numpy()[alive]
        for name, total in self.sums.items():
            flat = total.reshape(len(total), -1)
            flat[users // len(world.there), cells.drop_null().to_numpy()] += folded[name].to_numpy()[alive]

    def _rows(self, world: World, outcomes: Sequence[tuple[int, Outcome]], action: str) -> pa.Table:
        users, places = world.there.shape
        tables = [pa.schema([("user_id", pa.string()), ("cluster_id", pa.string()), ("at", TIME)]).empty_table()]
        for player, outcome in outcomes:
            counts = {"draw": outcome.draws, IMPRESSION: outcome.impressions, "repin": outcome.engagements, "hide": outcome.hides}[action]
            user = np.repeat(player * users + outcome.cells // places, counts)
            at = pa.array(np.full(len(user), outcome.at)).cast(TIME)
            tables.append(
                pa.table(
                    {
                        "user_id": self._user_ids.take(pa.array(user)),
                        "cluster_id": pa.array(np.repeat(outcome.cluster_ids, counts), pa.string()),
                        "at": at,
                    }
                )
            )
        return pa.concat_tables(tables)


def play(world: World, players: Sequence[tuple[str, int]], *, rounds: int, seed: int) -> dict[tuple[str, int], Floats]:
    """Share of the oracle's reward in each round, weighted so that its mean is the share of the whole: (rounds,) for each player.

    A player is a policy and the rounds until its feedback arrives. Each sees only what its own draws brought.
    """
    rng = np.random.default_rng([seed, 1])
    minds = [make(policy) for policy, _ in players]
    ledger = Ledger(world, len(players))
    history: list[list[Outcome]] = []
    earned, possible = np.zeros((len(players), rounds)), np.zeros(rounds)
    for turn in range(rounds):
        if turn:
            ledger.fade(world.advance())
            arrived = {number: history[turn - lag][number] for number, (_, lag) in enumerate(players) if turn >= lag}
            for number, outcome in arrived.items():
                minds[number].learn(outcome)
            ledger.add(world, list(arrived.items()), list(enumerate(history[-1])))
        known, value, outcomes = profiles(world), worth(world), []
        for number, mind in enumerate(minds):
            own = {name: total[number] for name, total in ledger.sums.items()}
            draws, features = mind.draw(Situation(at=now(world), there=world.there, profiles=known, sums=own), rng)
            assert (draws.sum(axis=1) == QUERIES).all()
            assert not draws[~world.there].any()
            earned[number, turn] = (draws * value).sum()
            outcomes.append(happen(world, draws, features, rng))
        possible[turn] = (best(np.where(world.there, value, -np.inf)) * value).sum()
        history.append(outcomes)
    return dict(zip(players, earned / possible.mean(), strict=True))


def make(policy: str) -> Player:
    rivals = {"thompson": lambda: Thompson(1), "thompson_per_query": lambda: Thompson(QUERIES), "ucb": Ucb, "linucb": LinUcb}
    return rivals[policy]() if policy in rivals else Own(policy)


def drifting_shares() -> dict[tuple[str, int], float]:
    """Share of the oracle's reward of every player in the drifting world, over all rounds."""
    played = play(DriftingWorld(SEED), PLAYERS, rounds=ROUNDS, seed=SEED)
    return {player: float(rounds.mean()) for player, rounds in played.items()}
