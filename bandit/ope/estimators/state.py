"""What an estimator remembers of a log: sums of fixed size, that merge by addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidValueError
from bandit.ope.estimators.batch import BUCKETS, Batch
from bandit.types import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Sums over `count` decisions of m terms each: halves of a log, files and machines combine with `+`, in any order.

    totals (m,); products (m, m), sums of products of two terms; of each bucket of users, by_user (BUCKETS, m) the totals and decisions
    (BUCKETS,) their number;
    least and greatest (m,), the extremes of a decision's terms; reward_limit, the largest |reward| of one draw.
    """

    count: int
    totals: Floats
    products: Floats
    by_user: Floats
    decisions: Floats
    least: Floats
    greatest: Floats
    reward_limit: float = 0.0

    def __add__(self, other: State) -> State:
        """The state of both logs together."""
        if len(self.totals) != len(other.totals):
            raise InvalidValueError("State", expected=f"{len(self.totals)} terms", received=len(other.totals))
        return State(
            count=self.count + other.count,
            totals=self.totals + other.totals,
            products=self.products + other.products,
            by_user=self.by_user + other.by_user,
            decisions=self.decisions + other.decisions,
            least=np.minimum(self.least, other.least),
            greatest=np.maximum(self.greatest, other.greatest),
            reward_limit=max(self.reward_limit, other.reward_limit),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """One way to value a target policy on a log: what it sums, and what the sums say.

    needs_model: whether it needs `Batch.predicted`; ratio: whether its value is a ratio of sums, and so not a mean of decisions.
    terms: (R, m) of a batch. value: of a number of decisions and totals (..., m), unit reward per decision, for one choice.
    choose: which of several variants to value, from the whole state; 0 for an estimator that has one.
    """

    name: str
    needs_model: bool
    ratio: bool
    size: int
    terms: Callable[[Batch], Floats]
    value: Callable[[Floats | float, Floats, int], Floats]
    choose: Callable[[State], int] = lambda _: 0

    def empty(self) -> State:
        """The state of no decisions: zero of the addition."""
        return empty_state(self.size)

    def observe(self, batch: Batch) -> State:
        """The state of a batch.

        Raises: InvalidValueError when the estimator needs a model of the reward and the batch has none.
        """
        limit = float(np.abs(batch.reward / np.maximum(batch.draws, 1.0)).max(initial=0.0))
        return state_of(self.terms(batch), batch.users, reward_limit=limit)

    def estimate(self, state: State) -> float:
        """Value of the target, unit reward per decision; NaN of an empty log."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.value(float(state.count), state.totals, self.choose(state)))


def empty_state(size: int) -> State:
    """The state of no decisions."""
    zeros = np.zeros(size)
    return State(
        count=0,
        totals=zeros,
        products=np.zeros((size, size)),
        by_user=np.zeros((BUCKETS, size)),
        decisions=np.zeros(BUCKETS),
        least=np.full(size, np.inf),
        greatest=np.full(size, -np.inf),
    )


def state_of(terms: Floats, users: Ints, *, reward_limit: float = 0.0) -> State:
    """The state of terms (R, m) of decisions whose users fall into these buckets."""
    size = terms.shape[1]
    if not len(terms):
        return empty_state(size)
    return State(
        count=len(terms),
        totals=terms.sum(axis=0),
        products=terms.T @ terms,
        by_user=np.stack([np.bincount(users, terms[:, column], BUCKETS) for column in range(size)], axis=1),
        decisions=np.bincount(users, minlength=BUCKETS).astype(np.float64),
        least=terms.min(axis=0),
        greatest=terms.max(axis=0),
        reward_limit=reward_limit,
    )
