"""The sections of the settings: each key with its default, its unit and what it does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bandit.errors import InvalidValueError
from bandit.model.exploration import Exploration
from bandit.model.learner_options import refusal
from bandit.model.vowpal import Learner
from bandit.ope.gate import Gate
from bandit.rewards.decay import HalfLives
from bandit.rewards.scheme import RewardScheme
from bandit.rewards.sums import SumsDefinition
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RewardSettings(_Section):
    """Weights are rewards per action; the range clips the reward of one impression."""

    weights: dict[str, float] = {"repin": 1.0, "click": 0.5, "closeup": 0.25, "hide": -1.0}
    minimum: float = -1.0
    maximum: float = 2.0
    session_half_life_minutes: float = Field(30.0, gt=0)
    long_half_life_days: float = Field(14.0, gt=0)
    attribution_window_hours: float = Field(24.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> RewardSettings:
        self.scheme()
        return self

    def scheme(self) -> RewardScheme:
        """The weights and the range, as the mathematics takes them."""
        return RewardScheme(weights=self.weights, minimum=self.minimum, maximum=self.maximum)

    def sums_definition(self) -> SumsDefinition:
        """How events become sums under these settings."""
        return SumsDefinition(scheme=self.scheme(), half_lives=self.half_lives())

    def half_lives(self) -> HalfLives:
        """Both half-lives, in microseconds."""
        return HalfLives(
            session=round(self.session_half_life_minutes * MICROSECONDS_PER_MINUTE),
            long=round(self.long_half_life_days * MICROSECONDS_PER_DAY),
        )

    @property
    def attribution_window(self) -> int:
        """How long after a decision its feedback counts, microseconds."""
        return round(self.attribution_window_hours * 60 * MICROSECONDS_PER_MINUTE)


class ClusteringSettings(_Section):
    """PinnerSage clusters of each user's engaged items."""

    distance_threshold: float = Field(1.0, gt=0)  # Ward height at which the dendrogram is cut; unit-length embeddings
    max_clusters: int = Field(100, ge=1)
    max_items: int = Field(1000, ge=1)  # the most recent engaged items of a user; Ward takes time and memory of their square
    importance_decay_per_day: float = Field(0.01, ge=0)  # PinnerSage's lambda
    items_per_cluster: int = Field(10, ge=1)
    topics: int = Field(64, ge=1)
    seed: int = 1
    processes: int = Field(0, ge=0)  # 0: one per core


PolicyName = Literal["uniform", "action_count", "importance", "query_reward", "bandit"]


class PolicySettings(_Section):
    """Which policy chooses, and what it may spend on exploration."""

    name: PolicyName = "bandit"
    prior_strength: float = Field(8.0, gt=0)  # impressions
    optimism: float = Field(1.5, ge=0)  # standard deviations
    exploration_budget: float = Field(0.005, gt=0, le=1)  # share of the greedy value
    impressions_per_query: float = Field(4.0, gt=0)  # expected of one drawn query, for what is in flight
    residual_limit: float = Field(0.3, ge=0)  # reward per impression that the model may add to a rate, or take from it
    max_queries_per_cluster: int = Field(10, ge=1)  # diversity limit

    def exploration(self) -> Exploration:
        """The exploration part: training hands it to serving with the model, so that a version stands for one behaviour."""
        return Exploration(
            optimism=self.optimism,
            budget=self.exploration_budget,
            impressions_per_query=self.impressions_per_query,
            residual_limit=self.residual_limit,
        )


class ServingSettings(_Section):
    """How choices come about, how long a request may wait, and how soon a new model is seen."""

    # log_only and apprentice serve the choice that the caller passes and log it; an apprentice learns from it, log_only does not.
    mode: Literal["online", "log_only", "apprentice"] = "online"
    deadline_ms: float = Field(50.0, gt=0)
    model_poll_seconds: float = Field(0.5, gt=0)
    cached_profiles: int = Field(10_000, ge=0)  # last profiles seen, for answering while Redis is unavailable
    connections: int = Field(32, ge=1)  # to Redis, of one process; more requests at once wait for each other
    breaker_failures: int = Field(3, ge=1)  # in a row, and Redis is left alone
    breaker_seconds: float = Field(0.5, gt=0)  # until one request tries it again


class HttpSettings(_Section):
    """`query-rewards serve`: where it listens, and what it refuses. The bearer token comes from QUERY_REWARDS_HTTP_TOKEN."""

    host: str = "127.0.0.1"  # another one only with a token
    port: int = Field(8000, ge=0, le=65535)  # 0: any that is free
    max_body_bytes: int = Field(1_048_576, ge=1)
    max_connections: int = Field(1000, ge=1)  # more: those that have not asked anything for longest are closed
    idle_seconds: float = Field(10.0, gt=0)  # for a request's headers, for its body, and between two requests
    requests_per_second: float = Field(2000.0, gt=0)  # of one client address, in the long run
    burst: int = Field(4000, ge=1)  # of one client address at once
    shutdown_seconds: float = Field(10.0, gt=0)  # for requests under way when the process is told to end


class StreamSettings(_Section):
    """Feedback as it happens: who folds it, how late it may come, and how much of it may wait."""

    enabled: bool = False  # `query-rewards stream` folds, and is the only writer of cluster_rewards online
    window_hours: float = Field(48.0, gt=0)  # how late an event may arrive: the attribution window, and a day
    max_backlog: int = Field(20_000, ge=1)  # entries that may wait in one of the 256 partitions before feedback is pushed back
    lease_seconds: float = Field(10.0, gt=0)  # a consumer that was silent this long loses its partitions
    archive_seconds: float = Field(30.0, gt=0)  # between two Parquet files of the logs

    @property
    def window(self) -> int:
        """How late an event may arrive, microseconds."""
        return round(self.window_hours * 60 * MICROSECONDS_PER_MINUTE)


class IntakeSettings(_Section):
    """What a step does with rows that it cannot use: puts them aside and counts them, up to a share."""

    tolerate: float = Field(0.01, ge=0, lt=1)  # share of unusable rows above which a step refuses its input
    shrink: float = Field(0.2, ge=0, le=1)  # share by which a snapshot may shrink from one run to the next


class TrainingSettings(_Section):
    """What the learner learns from, and how."""

    window_days: float = Field(30.0, gt=0)
    minimum_rows: int = Field(1000, ge=1)  # drawn clusters with impressions; fewer: no candidate model
    # Of Vowpal Wabbit, those that bandit.model.learner_options lists. --coin needs no learning rate, and was best both in the drifting
    # world and in the replay of the demo.
    learner_options: str = "--coin"
    seed: int = 1
    timeout_seconds: float = Field(600.0, gt=0)
    every_seconds: float = Field(0.0, ge=0)  # between two small updates of `query-rewards learn`; 0: none
    held_out: float = Field(0.2, gt=0, lt=1)  # newest part of the rows: not learned from, but judged on by the gate
    largest_update: float = Field(0.05, gt=0)  # mean change of the predictions, reward per impression, that counts as small

    @field_validator("learner_options")
    @classmethod
    def _representable(cls, options: str) -> str:
        problem = refusal(options)
        if problem is not None:
            raise ValueError(problem)
        return options

    def learner(self) -> Learner:
        """How Vowpal Wabbit is run."""
        return Learner(options=self.learner_options, seed=self.seed, timeout_seconds=self.timeout_seconds)


class GateSettings(_Section):
    """What a model must show before it serves; see `bandit.ope.gate.Gate` for the thresholds."""

    mode: Literal["enforce", "off"] = "enforce"  # off: every trained model is promoted
    decisions: int = Field(1000, ge=1)
    effective_sample: float = Field(1000.0, ge=0)  # draws that the weighted log is worth
    effective_share: float = Field(0.1, ge=0, le=1)  # of the draws
    mean_weight_error: float = Field(0.1, ge=0)
    largest_weight_share: float = Field(0.05, ge=0, le=1)  # of the whole weight, that one draw may carry
    unsupported_share: float = Field(0.01, ge=0, le=1)  # of the target's queries
    audit_p: float = Field(1e-4, ge=0, le=1)
    alpha: float = Field(0.05, gt=0, lt=1)  # chance that the interval of the lift is ever wrong
    worthwhile_lift: float = 0.01  # relative; a lift that is certainly below it is not better

    def gate(self) -> Gate:
        """The thresholds."""
        return Gate(**self.model_dump(exclude={"mode"}))


class ArmSettings(_Section):
    """One arm of an experiment: its share of the users, and the policy that chooses for them."""

    share: float = Field(gt=0, le=1)
    policy: PolicyName


class ExperimentSettings(_Section):
    """An A/B split of the users. Without arms there is none."""

    salt: str = ""  # another salt is another split
    arms: dict[str, ArmSettings] = {}
    learn_from: Literal["bandit", "all"] = "bandit"  # which arms' rows the model learns from: those whose policy is the bandit, or all

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSettings:
        if sum(arm.share for arm in self.arms.values()) > 1.0 + 1e-9:
            raise InvalidValueError("experiment.arms", expected="shares that sum to 1 at most", received=self.shares())
        return self

    def shares(self) -> dict[str, float]:
        """Share of each arm."""
        return {name: arm.share for name, arm in self.arms.items()}


class RetentionSettings(_Section):
    """How long the past is kept."""

    snapshot_days: float = Field(90.0, ge=0)  # how far back a point-in-time join answers what it answered then


class MlflowSettings(_Section):
    """Where runs and models are recorded; an empty uri is SQLite in the data folder, MLFLOW_TRACKING_URI wins."""

    tracking_uri: str = ""
    experiment: str = "query-rewards"
    model: str = "query-rewards"
