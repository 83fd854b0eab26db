"""One served world for all tests of serving, with a Redis that only they use, so that it may be halted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.served_world import Served, make
from training.local_redis import URL_VARIABLE, local_redis


@pytest.fixture(scope="session")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(URL_VARIABLE, raising=False)
        with local_redis() as url:
            yield make(tmp_path_factory.mktemp("served") / "deployment", url)


@pytest.fixture
def served(online: Served, plain_environment: None) -> Served:
    """The same features for every test; no decisions and no model of the test before."""
    online.forget()
    return online
