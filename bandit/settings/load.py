"""All settings: one frozen object from one TOML file, every key overridable by QUERY_REWARDS_SECTION__KEY, unknown keys refused."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from bandit.errors import InvalidSettingError, InvalidValueError
from bandit.policy.decide import Rules
from bandit.rewards.feedback import FeedbackValidator
from bandit.settings.address import RedisAddress
from bandit.settings.paths import local_path
from bandit.settings.sections import (
    ClusteringSettings,
    ExperimentSettings,
    GateSettings,
    HttpSettings,
    IntakeSettings,
    MlflowSettings,
    PolicySettings,
    RetentionSettings,
    RewardSettings,
    ServingSettings,
    StreamSettings,
    TrainingSettings,
)
from bandit.types import Prior, Rate

ENVIRONMENT_PREFIX = "QUERY_REWARDS_"
HTTP_TOKEN_VARIABLE = "QUERY_REWARDS_HTTP_TOKEN"  # noqa: S105 -- the variable's name; a secret, so it is no setting
DEFAULT_FILE = "query_rewards.toml"
_UNTRAINED_MEAN = 0.1  # prior mean while no model has brought one, reward per impression


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
    intake: IntakeSettings = IntakeSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    retention: RetentionSettings = RetentionSettings()
    mlflow: MlflowSettings = MlflowSettings()

    _root: Path = PrivateAttr(default=Path())

    @field_validator("redis_url")
    @classmethod
    def _address(cls, value: str) -> str:
        RedisAddress.of(value)
        return value

    @field_validator("feature_repo", "data", mode="before")
    @classmethod
    def _local(cls, value: object) -> object:
        return local_path(value) if isinstance(value, str | Path) else value

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

    def feedback_validator(self) -> FeedbackValidator:
        """What feedback must be to be counted."""
        return FeedbackValidator(actions=frozenset(self.reward.scheme().action_types), window=self.stream.window)

    def rules(self) -> Rules:
        """What decisions follow."""
        return Rules(
            policy=self.policy.name,
            arm_policies={name: arm.policy for name, arm in self.experiment.arms.items()},
            arm_shares=self.experiment.shares(),
            salt=self.experiment.salt,
            half_lives=self.reward.half_lives(),
            untrained=Prior(rate=Rate(mean=_UNTRAINED_MEAN, strength=self.policy.prior_strength)),
            exploration=self.policy.exploration(),
            queries_per_cluster=float(self.policy.max_queries_per_cluster),
        )

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
        received = "" if key == "redis_url" else f", received {first['input']!r}"  # there may be a password in it
        raise InvalidSettingError(_source_of(key, str(path)), key, f"{first['msg']}{received}") from (error if received else None)
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
