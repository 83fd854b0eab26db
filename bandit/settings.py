"""All settings: one frozen object from one TOML file, every key overridable by QUERY_REWARDS_SECTION__KEY, unknown keys refused."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from bandit.errors import InvalidSettingError, InvalidValueError
from bandit.evidence import HalfLives
from bandit.exploration import Exploration
from bandit.gate import Gate
from bandit.intake import Intake
from bandit.reward import RewardScheme
from bandit.types import MICROSECONDS_PER_DAY, MICROSECONDS_PER_MINUTE

ENVIRONMENT_PREFIX = "QUERY_REWARDS_"
HTTP_TOKEN_VARIABLE = "QUERY_REWARDS_HTTP_TOKEN"  # noqa: S105 -- the variable's name; a secret, so it is no setting
DEFAULT_FILE = "query_rewards.toml"


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
    remembered_profiles: int = Field(10_000, ge=0)  # last profiles seen, for answering while Redis is away
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


class TrainingSettings(_Section):
    """What the learner learns from, and how."""

    window_days: float = Field(30.0, gt=0)
    minimum_rows: int = Field(1000, ge=1)  # drawn clusters with impressions; fewer: no candidate model
    learner_options: str = "--coin"  # of Vowpal Wabbit, beside those that the export relies on
    seed: int = 1
    timeout_seconds: float = Field(600.0, gt=0)
    every_seconds: float = Field(0.0, ge=0)  # between two small updates of `query-rewards learn`; 0: none
    held_out: float = Field(0.2, gt=0, lt=1)  # newest part of the rows: not learned from, but judged on by the gate
    largest_update: float = Field(0.05, gt=0)  # mean change of the predictions, reward per impression, that counts as small


class GateSettings(_Section):
    """What a model must show before it serves; see `bandit.gate.Gate` for the thresholds."""

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


class MlflowSettings(_Section):
    """Where runs and models are recorded; an empty uri is SQLite in the data folder, MLFLOW_TRACKING_URI wins."""

    tracking_uri: str = ""
    experiment: str = "query-rewards"
    model: str = "query-rewards"


class Settings(BaseSettings):
    """Every setting with its default; paths are relative to the folder of the settings file."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", nested_model_default_partial_update=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    feature_repo: Path = Path("feature_repo")
    data: Path = Path("data")
    reward: RewardSettings = RewardSettings()
    clustering: ClusteringSettings = ClusteringSettings()
    policy: PolicySettings = PolicySettings()
    serving: ServingSettings = ServingSettings()
    http: HttpSettings = HttpSettings()
    stream: StreamSettings = StreamSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    mlflow: MlflowSettings = MlflowSettings()

    _root: Path = PrivateAttr(default=Path())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file."""
        return env_settings, init_settings

    def intake(self) -> Intake:
        """What feedback must be to be counted."""
        return Intake(actions=frozenset(self.reward.scheme().action_types), window=self.stream.window)

    @property
    def feature_repo_path(self) -> Path:
        """Folder of feature_store.yaml."""
        return self._root / self.feature_repo

    @property
    def data_path(self) -> Path:
        """Folder of logs, training rows, runs and models."""
        return self._root / self.data


def load_settings(path: str | Path = DEFAULT_FILE) -> Settings:
    """Read the settings file and the environment, once.

    Raises: InvalidSettingError naming the file or variable, the key, and the nearest known key for an unknown one.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidSettingError(str(path), "", "no such file; `query-rewards init` writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingError(str(path), "", f"not a TOML file: {error}") from error
    _refuse_unknown_variables(os.environ)
    try:
        settings = Settings(**content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InvalidSettingError(str(path), key, "unknown" + _nearest(key)) from error
        raise InvalidSettingError(_source_of(key, str(path)), key, f"{first['msg']}, received {first['input']!r}") from error
    except SettingsError as error:  # a table in the environment is JSON
        raise InvalidSettingError(_variable("reward.weights"), "reward.weights", f"not JSON: {error.__cause__}") from error
    except InvalidValueError as error:
        raise InvalidSettingError(str(path), error.name, str(error)) from error
    settings._root = path.resolve().parent  # noqa: SLF001 -- ours; pydantic has no other way to carry what is not a setting
    return settings


def _known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _known_keys(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, list(_known_keys()), n=1, cutoff=0.0)
    return f"; the nearest known key is {near[0]!r}" if near else ""


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()


def _source_of(key: str, file: str) -> str:
    variable = _variable(key)
    return variable if variable in os.environ else file


def _refuse_unknown_variables(environment: Mapping[str, Any]) -> None:
    known = {_variable(key): key for key in _known_keys()} | {HTTP_TOKEN_VARIABLE: ""}
    for variable in environment:
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)
            raise InvalidSettingError(variable, variable, f"unknown variable; the nearest known one is {near[0]}")
