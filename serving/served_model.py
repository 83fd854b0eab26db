"""The served model: taken over from Redis within a second of its promotion; the last good one goes on serving."""

from __future__ import annotations

import logging
import threading

import msgspec
import redis

from bandit.model.linear_model import LinearModel, model_from_bytes
from feature_repo.keys import Keys
from serving.after_fork import renew_after_fork

log = logging.getLogger(__name__)


class ServedModel:
    """Watches the champion pointer of Redis in a thread of its own.

    `current` is (version, model), replaced as a whole, or None while no model was ever promoted.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, poll_seconds: float) -> None:
        """Look once now, then every `poll_seconds`."""
        self._client, self._keys, self._poll_seconds = client, keys, poll_seconds
        self.current: tuple[str, LinearModel] | None = None
        self._pointer: bytes | None = None  # what `current` was read from
        self._refused: bytes | None = None  # what was said to be unusable; it is looked at again, for it may be handed over again
        self._away = False
        self._stop = threading.Event()
        self.refresh()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Watch in this process: a thread of the parent's does not come along."""
        if self._stop.is_set():
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), name="query-rewards-model", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Take over the champion if it changed. Redis going away is one log line, and its return another one."""
        try:
            self._look()
        except redis.RedisError as error:
            if not self._away:
                log.warning("model check failed, serving goes on as before: %s", error)
            self._away = True
            return
        if self._away:
            log.warning("models are looked for again")
        self._away = False

    def _look(self) -> None:
        """A model that cannot be used is refused, with one log line."""
        pointer = self._client.get(self._keys.champion)
        if pointer is None or pointer == self._pointer:
            return
        try:
            champion = msgspec.msgpack.decode(pointer, type=dict[str, str])
            data = self._client.get(self._keys.model(champion["sha256"])) or b""
            self.current = (champion["version"], model_from_bytes(data, champion["sha256"]))
            self._pointer = pointer
            log.info("serving model version %s", champion["version"])
        except (ValueError, msgspec.MsgspecError, KeyError) as error:  # CorruptModelError is a ValueError, and so is a torn pointer's text
            if pointer != self._refused:
                log.error("refused the promoted model, serving goes on as before: %s", error)  # noqa: TRY400 -- one line, as promised
            self._refused = pointer

    def close(self) -> None:
        """Stop watching, and disconnect."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self._poll_seconds):
            self.refresh()
