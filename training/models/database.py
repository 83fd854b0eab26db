"""MLflow's SQLite database in the data folder: migrated in a copy that replaces it when it is whole, and moved with its folder."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from mlflow.store.db import utils

from bandit.errors import RegistryError
from training.logs.writing import whole_file

_FILE = "mlflow.db"
_ARTIFACTS = "artifacts"
# Where MLflow keeps absolute places of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def own_database(folder: Path, experiment: str) -> str:
    """The URI of a database that is whole, in `folder`. Its migrations take seconds, and MLflow itself cannot go on with half of them.

    Raises: RegistryError for a database that cannot be migrated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _FILE
    if not _current(file):
        with _alone(folder):
            if not _current(file):  # another process may have done it while this one waited
                _migrate(file)
    _follow(file, artifacts(folder), experiment)
    return f"sqlite:///{file}"


def artifacts(folder: Path) -> str:
    """Where the runs of the own database keep their files."""
    return (folder / _ARTIFACTS).as_uri()


def _current(file: Path) -> bool:
    return file.exists() and _version(file) == utils._get_latest_schema_revision()  # noqa: SLF001 -- MLflow has no public way to ask


def _version(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:  # no such table, or no database
            return ""
    return str(row[0]) if row else ""


def _migrate(file: Path) -> None:
    for left in file.parent.glob(f".{file.name}.*-journal"):
        left.unlink()  # of a draft whose process was killed
    used = file.exists() and _has_runs(file)
    with whole_file(file) as draft:
        if used:
            with contextlib.closing(sqlite3.connect(file)) as source, contextlib.closing(sqlite3.connect(draft)) as copy:
                source.backup(copy)
        engine = sqlalchemy.create_engine(f"sqlite:///{draft}")
        try:
            (utils._upgrade_db if used else utils._initialize_tables)(engine)  # noqa: SLF001 -- what `mlflow db upgrade` calls
        except Exception as error:  # whatever a migration meets, of whatever library
            reason = str(error).partition("\n")[0]
            raise RegistryError(f"{file}: MLflow's database cannot be migrated, and is left as it is: {reason}") from error
        finally:
            engine.dispose()


def _has_runs(file: Path) -> bool:
    """Whether anything would be lost with the file. A first start that was killed may have left bare tables."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        try:
            return any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("runs", "registered_models"))  # noqa: S608 -- two constants
        except sqlite3.OperationalError:  # no such table
            return False
        except sqlite3.DatabaseError as error:
            raise RegistryError(
                f"{file}: not a database ({error}): restore it from a backup, or move it away to begin with none"
            ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".migrating").open("wb") as opened:
        with contextlib.suppress(OSError):  # a file system without locks: the lease then keeps writers apart
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _follow(file: Path, here: str, experiment: str) -> None:
    """After the data folder was moved or restored elsewhere, let what the database says of places follow."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
        if row is None or row[0] == here or not row[0].endswith(f"/mlflow/{_ARTIFACTS}"):
            return
        before = str(row[0])
        for table, column in _PLACES:
            change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608 -- names above
            connection.execute(change, (here, len(before) + 1, len(before), before))
