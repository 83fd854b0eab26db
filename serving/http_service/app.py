"""The application: routes, and our errors as statuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from bandit.errors import BacklogFullError, DependencyUnavailableError, InvalidValueError
from serving.feedback_log import FeedbackLog
from serving.http_service.bodies import BatchAnswer, BatchBody, FeedbackAnswer, FeedbackBody, Problem, SelectBody, SelectionAnswer
from serving.http_service.metrics import ServingMetrics
from serving.selector import QuerySelector

_encode = msgspec.json.Encoder().encode
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not a JSON body"},
    401: {"model": Problem, "description": "No token, or a wrong one"},
    408: {"model": Problem, "description": "The request came too slowly"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Problem, "description": "The body is not what the schema asks for"},
    429: {"model": Problem, "description": "Too many requests from this address"},
    503: {"model": Problem, "description": "Redis is unavailable, or holds too much feedback: try again later"},
}
_bearer = Security(HTTPBearer(auto_error=False))  # for the OpenAPI page; the guard is what looks at the token


def make_app(selector: QuerySelector, feedback: FeedbackLog, metrics: ServingMetrics) -> FastAPI:
    """The application around an open selector, which it closes when the server ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 -- FastAPI's signature
        yield
        await selector.close_async()
        feedback.close()

    app = FastAPI(title="Query Rewards", lifespan=lifespan, redoc_url=None, separate_input_output_schemas=False)

    @app.post("/v1/select", response_model=SelectionAnswer, responses=_REFUSALS, dependencies=[_bearer])
    async def select(body: SelectBody) -> Response:
        """Choose the queries of one request; the decision is in the log when the answer comes."""
        chosen = await selector.select_async(body.user_id, body.k, body.context, caps=body.caps, fallback=body.fallback, seed=body.seed)
        return _json(chosen)

    @app.post("/v1/select:batch", response_model=BatchAnswer, responses=_REFUSALS, dependencies=[_bearer])
    async def select_batch(body: BatchBody) -> Response:
        """Choose for many users."""
        chosen = await run_in_threadpool(selector.select_many, body.user_ids, body.k, body.context, seeds=body.seeds)
        return _json({"selections": chosen})

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=_REFUSALS, dependencies=[_bearer])
    async def record(body: FeedbackBody) -> Response:
        """Append what happened downstream of queries; the same event_id counts once, so a call may be repeated."""
        return _json(await run_in_threadpool(feedback.record, body.events, wait_seconds=0.0))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Redis refuses the password or the user"}})
    async def readyz() -> JSONResponse:
        """It can choose; without Redis from the profiles seen last, which is better than no answer."""
        state = await selector.redis_state()
        ready = state != "refuses"
        content = {"status": "ready" if ready else "not ready", "redis": state, "model_version": selector.model_version}
        return JSONResponse(content, status_code=200 if ready else 503)

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: _REFUSALS[401]}, dependencies=[_bearer]
    )
    async def page() -> Response:
        """Prometheus metrics."""
        return Response(await run_in_threadpool(metrics.page), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        """What is wrong and where, without the value: it may be anything."""
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        return JSONResponse({"detail": f"{place}: {first['msg']}".encode(errors="replace").decode()}, status_code=status)

    @app.exception_handler(InvalidValueError)
    async def refused(_: Request, error: InvalidValueError) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(BacklogFullError)
    @app.exception_handler(DependencyUnavailableError)
    async def later(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=503, headers={"retry-after": "1"})

    return app


def _json(content: object) -> Response:
    return Response(_encode(content), media_type="application/json")
