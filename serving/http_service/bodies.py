"""What the HTTP service takes and gives, as its OpenAPI page shows it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

_Id = Annotated[str, StringConstraints(min_length=1, max_length=512)]
_Text = Annotated[str, StringConstraints(max_length=512)]
_Context = Annotated[dict[_Text, _Text], Field(max_length=64)]
_K = Annotated[int, Field(ge=1, le=1000, strict=True)]
_Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SelectBody(_Body):
    """One request for queries; the fields are the arguments of `QuerySelector.select`."""

    user_id: _Id
    k: _K
    context: _Context = {}
    caps: dict[_Id, Annotated[int, Field(ge=0, le=1000, strict=True)]] | None = None
    fallback: dict[_Id, list[_Id]] | None = None
    seed: _Seed | None = None


class BatchBody(_Body):
    """Many users at once; `seeds`, when given, has one for each."""

    user_ids: Annotated[list[_Id], Field(min_length=1, max_length=1000)]
    k: _K
    context: _Context = {}
    seeds: list[_Seed] | None = None


class FeedbackBody(_Body):
    """Events as `FeedbackLog.record` takes them: event_id, decision_id, user_id, cluster_id, query_id, item_id, action, occurred_at."""

    events: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=5000)]


class QueryAnswer(BaseModel):
    """One item to send to retrieval."""

    item_id: str
    cluster_id: str
    propensity: float


class SelectionAnswer(BaseModel):
    """`serving.Selection`."""

    decision_id: str
    queries: list[QueryAnswer]
    policy: str
    model_version: str
    degraded: bool
    logged: bool
    reason: str
    quotas: dict[str, float]


class BatchAnswer(BaseModel):
    """Selections in the order of the users."""

    selections: list[SelectionAnswer]


class RejectedEventAnswer(BaseModel):
    """An event that was not taken."""

    index: int
    event_id: str
    reason: str


class FeedbackAnswer(BaseModel):
    """`serving.Recorded`: accepted is in Redis, durable on disk."""

    accepted: int
    durable: int
    rejected: list[RejectedEventAnswer]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
