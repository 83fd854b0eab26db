"""Claims: which data folder a Redis belongs to. Two folders under one project name would serve each other's models.

Redis holds the claim of the last run: the folder's id, a number that grows with each run, and the run's token. The folder holds the same,
written first. So Redis may be behind the folder (a killed run, a backup of Redis). It is never ahead: then this folder is an old copy. A
moved folder keeps its id. The claim also fences: a script of ours writes only while Redis holds the claim of the run that calls it.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import redis

from bandit.errors import LeaseLostError, OtherDeploymentError
from bandit.settings.load import Settings
from feature_repo.connection import connect, translated, without_password
from feature_repo.keys import Keys
from training.lock import Lease, leased

_FILE = "deployment.json"
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Whose Redis it is. Equal claims are of one run; `folder`, `host` and `at` are for people."""

    deployment: str
    number: int
    token: str
    folder: str
    host: str
    at: str


@contextlib.contextmanager
def running(settings: Settings, step: str) -> Iterator[Lease]:
    """Own the deployment and its Redis while `step` runs.

    Raises: LockHeldError, OtherDeploymentError, DependencyUnavailableError.
    """
    with leased(settings.data_path, step) as lease:
        claim(settings, lease)
        yield lease


def claim(settings: Settings, lease: Lease) -> bytes:
    """Write this run's claim to the folder and to Redis, once; returns it, for scripts that ask whether Redis still holds it.

    Raises: OtherDeploymentError, LeaseLostError, DependencyUnavailableError.
    """
    if settings.redis_url in lease.claims:
        return lease.claims[settings.redis_url]
    client = connect(settings.redis_url)
    with translated(settings.redis_url):
        seen = _checked(settings, client)
        known = _known(settings.data_path)
        folder = str(settings.data_path.resolve())
        new_claim = Claim(
            deployment=known.deployment if known else uuid.uuid4().hex,
            number=max(known.number + 1 if known else 0, lease.number),
            token=lease.token,
            folder=folder,
            host=socket.gethostname(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        data = msgspec.json.encode(new_claim)
        lease.check()
        from training.logs.writing import write_whole  # noqa: PLC0415 -- needs pyarrow, which a serving host lacks

        write_whole(settings.data_path / _FILE, data)
        if not client.eval(_SWAP, 1, Keys.of(settings.feature_repo_path).deployment, seen, data):
            raise LeaseLostError(lease.step)  # another run claimed since we looked
    lease.claims[settings.redis_url] = data
    return data


def check_claim(settings: Settings, client: redis.Redis) -> None:
    """For processes that share Redis with the runs of a folder, such as the stream's consumers.

    Raises: OtherDeploymentError, redis.RedisError.
    """
    _checked(settings, client)


def _checked(settings: Settings, client: redis.Redis) -> bytes:
    """What Redis holds. It is read before the folder's, which is written first: so a run of this folder in between looks right."""
    seen: bytes = client.get(Keys.of(settings.feature_repo_path).deployment) or b""
    if not seen:
        return seen
    theirs, known = _read(seen), _known(settings.data_path)
    if theirs is None or known is None or not _same(theirs, known, settings.data_path):
        folder, host, at = (theirs.folder, theirs.host, theirs.at) if theirs else ("unknown", "unknown", "unknown")
        raise OtherDeploymentError(
            without_password(settings.redis_url), Keys.of(settings.feature_repo_path).deployment, folder=folder, host=host, at=at
        )
    return seen


def _same(theirs: Claim, known: Claim, data: Path) -> bool:
    """Whether the claim in Redis is of this folder. A copy has the id, and lacks the later runs, or its original still exists."""
    if theirs.deployment != known.deployment or theirs.number > known.number:
        return False
    if theirs.number == known.number and theirs.token != known.token:
        return False
    original, ours = Path(theirs.folder) / _FILE, data / _FILE
    copied = theirs.host == socket.gethostname() and original.exists() and not original.samefile(ours)
    return not copied


def _known(data: Path) -> Claim | None:
    file = data / _FILE
    return _read(file.read_bytes()) if file.exists() else None


def _read(data: bytes) -> Claim | None:
    try:
        return msgspec.json.decode(data, type=Claim)
    except msgspec.MsgspecError:
        return None  # nobody's: as if it were another's
