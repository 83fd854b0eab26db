"""The HTTP service as a process: what it answers, what it refuses, and that it outlives both."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from bandit.errors import InvalidSettingError, Status
from serving.http_service.server import check_host
from tests.ports import free_port
from tests.served_world import REWARDED, UNKNOWN, Served, copied
from tests.tables_made import feedback
from training.local_redis import local_redis

TOKEN = "t0ken-of-the-tests"
JSON = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True, kw_only=True)
class Service:
    port: int
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, JSON if headers is None else headers)
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(content) if is_json else content.decode()
        finally:
            connection.close()


@contextmanager
def service(served: Served, **variables: str) -> Iterator[Service]:
    port = free_port()
    environment = os.environ | {"QUERY_REWARDS_HTTP__PORT": str(port), "QUERY_REWARDS_HTTP_TOKEN": TOKEN} | variables
    command = [sys.executable, "-W", "ignore", "-m", "query_rewards", "serve", "--settings", str(served.settings_file(deadline_ms=1000.0))]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    made = Service(port=port, process=process)
    reader = threading.Thread(target=lambda: made.log.extend(process.stderr))  # type: ignore[arg-type]
    reader.start()
    try:
        deadline = time.monotonic() + 30.0
        while True:
            try:
                assert made.ask("GET", "/healthz")[0] == 200
                break
            except OSError:
                assert time.monotonic() < deadline, made.log
                assert process.poll() is None, made.log
                time.sleep(0.05)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(15.0)
        finally:
            process.kill()
            reader.join()
            process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def running(online: Served) -> Iterator[Service]:
    with service(online, QUERY_REWARDS_HTTP__IDLE_SECONDS="2", QUERY_REWARDS_HTTP__MAX_CONNECTIONS="300") as made:
        yield made


def test_a_selection_is_what_the_library_gives_and_is_in_the_log(served: Served, running: Service) -> None:
    status, chosen = running.ask("POST", "/v1/select", {"user_id": "u0", "k": 4, "context": {"surface": "home"}, "seed": 5})
    assert status == 200
    (decision,) = served.decisions()
    assert (decision.decision_id, decision.k, decision.context) == (chosen["decision_id"], 4, {"surface": "home"})
    with served.open() as selector:
        again = selector.select("u0", 4, now=decision.decided_at, seed=5)
    assert [query["item_id"] for query in chosen["queries"]] == [query.item_id for query in again.queries]
    assert chosen["quotas"] == again.quotas
    assert running.ask("POST", "/v1/select", {"user_id": UNKNOWN, "k": 4})[1]["reason"] == "unknown user"


def test_a_batch_keeps_the_order_of_its_users(served: Served, running: Service) -> None:
    status, answer = running.ask("POST", "/v1/select:batch", {"user_ids": [*REWARDED, UNKNOWN], "k": 3, "seeds": [1, 2, 3, 4]})
    assert status == 200
    assert [selection["reason"] for selection in answer["selections"]] == ["", "", "", "unknown user"]
    assert {decision.decision_id for decision in served.decisions()} == {chosen["decision_id"] for chosen in answer["selections"][:3]}


def test_feedback_is_taken_or_refused_by_name(served: Served, running: Service) -> None:
    now = time.time_ns() // 1000
    good = {name: getattr(feedback("e1", at=now), name) for name in feedback("e1", at=now).__struct_fields__}
    status, answer = running.ask("POST", "/v1/feedback", {"events": [good, good | {"action": "stare"}, {"a": 1}]})
    assert (status, answer["accepted"], [event["index"] for event in answer["rejected"]]) == (200, 1, [1, 2])


def test_metrics_name_no_user(served: Served, running: Service) -> None:
    running.ask("POST", "/v1/select", {"user_id": "u0", "k": 4})
    status, page = running.ask("GET", "/metrics")
    assert status == 200
    for name in ("qr_select_seconds_bucket", "qr_select_degraded_ratio", "qr_propensity_drawn_total", "qr_stream_lag_seconds"):
        assert name in page
    assert "u0" not in page
    assert running.ask("GET", "/readyz")[1]["redis"] == "answers"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer "}])
@pytest.mark.parametrize("path", ["/v1/select", "/v1/select:batch", "/v1/feedback", "/metrics", "/elsewhere"])
def test_without_the_token_nothing_is_answered(running: Service, path: str, headers: dict[str, str]) -> None:
    assert running.ask("POST", path, {"user_id": "u0", "k": 1}, headers)[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"user_id": "\\ud800", "k": 1}',
        b'{"user_id": "u0", "k": NaN}',
        b'{"user_id": "u0", "k": 1e400}',
        b"[" * 50_000,
        {"user_id": "", "k": 1},
        {"user_id": "u0"},
        {"user_id": "u0", "k": 0},
        {"user_id": "u0", "k": True},
        {"user_id": "u0", "k": 2**70},
        {"user_id": "u0", "k": 1, "seed": -1},
        {"user_id": "u0", "k": 1, "unknown": 1},
        {"user_id": "u" * 600, "k": 1},
        {"user_id": "u0", "k": 1, "context": {"a": 1}},
    ],
)
def test_what_is_malformed_is_a_4xx(running: Service, body: Any) -> None:
    status, answer = running.ask("POST", "/v1/select", body)
    assert status in {400, 422}
    assert isinstance(answer["detail"], str)


@pytest.mark.parametrize("declared", [True, False])
def test_what_is_oversized_is_refused(running: Service, declared: bool) -> None:
    size = 1_048_576 + 1
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10.0)
    body = b"x" * size if declared else (b"x" * 65_536 for _ in range(20))
    try:
        connection.request("POST", "/v1/select", body, JSON, encode_chunked=not declared)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it had answered, and hung up on the rest
    finally:
        connection.close()
    assert running.ask("GET", "/healthz")[0] == 200


def test_who_is_slow_is_told_so(running: Service) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10.0) as headless:
        headless.sendall(b"POST /v1/select HT")
        assert headless.recv(1000).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10.0) as bodiless:
        head = f"POST /v1/select HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 100\r\n\r\n{{"
        bodiless.sendall(head.encode())
        assert bodiless.recv(1000).startswith(b"HTTP/1.1 408")


def test_ten_thousand_idle_connections_do_not_keep_others_out(running: Service) -> None:
    with ExitStack() as stack:
        for number in range(10_000):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10.0))
            if number % 2_000 == 1_999:
                assert running.ask("POST", "/v1/select", {"user_id": "u0", "k": 1})[0] == 200
    assert running.ask("GET", "/healthz")[0] == 200


def test_too_many_requests_are_429(online: Served) -> None:
    with service(online, QUERY_REWARDS_HTTP__BURST="5", QUERY_REWARDS_HTTP__REQUESTS_PER_SECOND="0.1") as made:
        statuses = [made.ask("GET", "/readyz")[0] for _ in range(10)]
    assert (statuses[0], statuses[-1], set(statuses)) == (200, 429, {200, 429})


def test_without_its_password_the_service_does_not_start_and_says_so_in_a_line(served: Served) -> None:
    with local_redis() as url:
        redis.Redis.from_url(url).config_set("requirepass", "pw")
        settings_file = Served(folder=served.folder, redis_url=url).settings_file()
        command = [sys.executable, "-W", "ignore", "-m", "query_rewards", "serve", "--settings", str(settings_file)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
        assert ended.returncode == Status.UNAVAILABLE
        assert "Authentication" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_the_service_is_not_ready_while_redis_refuses_its_password(served: Served) -> None:
    with local_redis() as url:
        admin = redis.Redis.from_url(url)
        copied(served, url)
        admin.execute_command("ACL", "SETUSER", "serve", "on", ">pw", "~*", "+@all")
        with service(Served(folder=served.folder, redis_url=url.replace("redis://", "redis://serve:pw@"))) as made:
            assert made.ask("GET", "/readyz")[0] == 200
            admin.execute_command("ACL", "SETUSER", "serve", "resetpass", ">other")
            admin.execute_command("CLIENT", "KILL", "USER", "serve")
            made.ask("GET", "/readyz")  # the connection is gone; the next one is refused
            assert made.ask("GET", "/readyz") == (503, {"status": "not ready", "redis": "refuses", "model_version": ""})
            admin.execute_command("ACL", "SETUSER", "serve", ">pw")
            deadline = time.monotonic() + 10.0
            while made.ask("GET", "/readyz")[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_the_end_of_the_process_loses_no_decision(online: Served) -> None:
    online.forget()
    returned: list[str] = []
    with service(online) as made:

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10.0)
            try:
                while True:
                    connection.request("POST", "/v1/select", json.dumps({"user_id": "u0", "k": 2}), JSON)
                    answer = json.loads(connection.getresponse().read())
                    assert answer["logged"]
                    returned.append(answer["decision_id"])
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()

        clients = [threading.Thread(target=client) for _ in range(8)]
        for thread in clients:
            thread.start()
        time.sleep(1.0)
        made.process.send_signal(signal.SIGTERM)
        for thread in clients:
            thread.join()
        assert made.process.wait(15.0) == 0
    assert len(returned) > 50
    assert set(returned) <= {decision.decision_id for decision in online.decisions()}
    assert not any(TOKEN in line for line in made.log)


@pytest.mark.parametrize(
    ("host", "token", "may"),
    [
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("localhost", "", True),
        ("0.0.0.0", "x", True),
        ("0.0.0.0", "", False),
        ("example.org", "", False),
    ],
)
def test_only_who_has_a_token_may_serve_others(tmp_path: Any, host: str, token: str, may: bool) -> None:
    if may:
        check_host(tmp_path, host, token)
    else:
        with pytest.raises(InvalidSettingError, match="QUERY_REWARDS_HTTP_TOKEN"):
            check_host(tmp_path, host, token)


@pytest.mark.filterwarnings("ignore")
def test_the_openapi_description_is_kept(served: Served, running: Service) -> None:
    """schemathesis makes requests from the description, good and bad ones: no 5xx, no answer that it does not describe."""
    schema = schemathesis.openapi.from_dict(running.ask("GET", "/openapi.json")[1])
    schema.config.update(base_url=f"http://127.0.0.1:{running.port}")

    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def call(case: schemathesis.Case) -> None:
            answer = case.call(headers={"authorization": f"Bearer {TOKEN}"})
            case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error])

        call()
