"""What Feast writes into Redis, as far as a read needs it: keys, field names and values of the pinned version.

Importing Feast takes seconds and 150 MB, and installing it 500 MB; a read needs none of it but the definition of one protobuf message.
`tests/serving/features/test_reader.py` holds this file to Feast's own `get_online_features`.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import yaml
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from bandit.errors import FeatureStoreError
from bandit.types import Floats, Ints
from feature_repo import names
from serving.features import packed

_REGISTRY_ATTEMPTS, _REGISTRY_PAUSE = 4, 0.1  # seconds
_KEY_VERSION = 3  # of Feast's entity keys
_STRING = 2  # feast.types.ValueType.STRING


def _message() -> Any:  # noqa: ANN401 -- made by protobuf at run time
    """Feast's `Value`, as far as our views use it: the numbers are those of feast/types/Value.proto."""
    file = FileDescriptorProto(name="query_rewards/value.proto", package="query_rewards", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="val")
    value.field.add(name="int64_val", number=4, type=FieldDescriptorProto.TYPE_INT64, oneof_index=0)
    for name, number, kind in (
        ("string_list_val", 12, FieldDescriptorProto.TYPE_STRING),
        ("int64_list_val", 14, FieldDescriptorProto.TYPE_INT64),
        ("double_list_val", 15, FieldDescriptorProto.TYPE_DOUBLE),
    ):
        values = value.nested_type.add(name=name.title())
        values.field.add(name="val", number=1, type=kind, label=FieldDescriptorProto.LABEL_REPEATED)
        value.field.add(name=name, number=number, type=FieldDescriptorProto.TYPE_MESSAGE, type_name=values.name, oneof_index=0)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("query_rewards.Value"))


_Value = _message()


def project_of(folder: Path, views: Sequence[str]) -> str:
    """Project of the store in `folder`, once its definitions have been applied.

    Raises: FeatureStoreError when there is no store, it is not one that this library can read, or `views` were never applied.
    """
    file = folder / "feature_store.yaml"
    if not file.exists():
        raise FeatureStoreError(f"{file}: no such file; `query-rewards init` writes one")
    content: Mapping[str, Any] = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
    store = content.get("online_store") or {}
    version = content.get("entity_key_serialization_version", _KEY_VERSION)
    if store.get("type") != "redis" or store.get("redis_type", "redis") != "redis" or version != _KEY_VERSION:
        raise FeatureStoreError(f"{file}: expected an online store of type redis, and entity_key_serialization_version {_KEY_VERSION}")
    registry = content.get("registry") or {}
    if isinstance(registry, str):
        registry = {"path": registry}
    path = str(registry.get("path", ""))
    if registry.get("registry_type", "file") == "file" and "://" not in path:  # others are looked at by Feast's own commands only
        _check_applied(folder / path, views)
    return str(content["project"])


def _check_applied(registry: Path, views: Sequence[str]) -> None:
    """Feast does not replace its registry file at once: a writer's half is read again."""
    missing: Sequence[str] = views
    for attempt in range(_REGISTRY_ATTEMPTS):
        applied = registry.read_bytes() if registry.is_file() else b""
        missing = [view for view in views if view.encode() not in applied]
        if not missing:
            return
        if attempt < _REGISTRY_ATTEMPTS - 1:
            time.sleep(_REGISTRY_PAUSE)
    raise FeatureStoreError(f"{registry} knows no feature view {missing[0]!r}: run `feast apply` in {registry.parent.parent}")


def field_name(view: str, feature: str) -> bytes:
    """Field of the user's hash that holds a feature."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


class ReadCommand:
    """The packed HMGET of a user's fields: everything but the key is the same for all users."""

    def __init__(self, project: str, fields: Sequence[bytes]) -> None:
        join_key = names.JOIN_KEY.encode()
        self._start = struct.pack("<III", 1, _STRING, len(join_key)) + join_key + struct.pack("<I", _STRING)
        self._end = project.encode()
        self._head = b"*%d\r\n$5\r\nHMGET\r\n$" % (len(fields) + 2)
        self._tail = b"".join(b"\r\n$%d\r\n%b" % (len(field), field) for field in fields) + b"\r\n"

    def key(self, user_id: str) -> bytes:
        """Key of the hash that holds both views of a user: Feast's serialized entity key, and the project."""
        user = user_id.encode()
        return b"%b%b%b%b" % (self._start, struct.pack("<I", len(user)), user, self._end)

    def of(self, user_id: str) -> bytes:
        """The command that reads a user, as Redis takes it."""
        key = self.key(user_id)
        return b"%b%d\r\n%b%b" % (self._head, len(key), key, self._tail)


def strings(raw: bytes) -> list[str]:
    """A stored list of strings. Values of another kind are an empty list, here and below."""
    found = packed.texts(raw, _STRINGS)
    return list(_Value.FromString(raw).string_list_val.val) if found is None else found


def lazy_strings(raw: bytes) -> Sequence[str]:
    """The same; a string is made when it is looked at: of some hundreds of items a request wants ten."""
    found: Sequence[str] = _Value.FromString(raw).string_list_val.val
    return found


def integer(raw: bytes) -> int:
    """A stored integer."""
    return int(_Value.FromString(raw).int64_val)


def integers(raw: bytes) -> Ints:
    """A stored list of integers."""
    found = packed.integers(raw, _INTEGERS)
    return np.array(_Value.FromString(raw).int64_list_val.val, np.int64) if found is None else found


def doubles(raw: bytes) -> Floats:
    """A stored list of doubles."""
    found = packed.doubles(raw, _DOUBLES)
    return np.array(_Value.FromString(raw).double_list_val.val, np.float64) if found is None else found


def _tag(**value: object) -> int:
    return _Value(**value).SerializeToString()[0]  # type: ignore[no-any-return]


_STRINGS, _INTEGERS, _DOUBLES = (
    _tag(string_list_val={"val": ["a"]}),
    _tag(int64_list_val={"val": [1]}),
    _tag(double_list_val={"val": [1.0]}),
)
