"""The built package as a user installs it: into clean environments, with no extra and with each, used from outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

from bandit.errors import Status
from bandit.settings.load import DEFAULT_FILE
from tests.ports import free_port
from tests.tables_made import DAY, NOW, unit_vectors, write_embeddings, write_history
from training.local_redis import local_redis

ROOT = Path(__file__).parents[1]
PACKAGES = ("bandit", "feature_repo", "serving", "training")
KINDS = (".py", ".pxd", ".yaml", ".toml")
TRAINING_VERBS = (
    *(("cluster", "--history", "h", "--embeddings", "e"), ("explain", "d"), ("init",), ("fold",), ("materialize",), ("stream",), ("join",)),
    *(("train",), ("promote",), ("evaluate",), ("experiment",), ("rollback",), ("retrain",), ("learn",)),
)
SECONDS = 900.0


def main() -> None:
    """Build, install, use. Raises: AssertionError."""
    with tempfile.TemporaryDirectory(prefix="query-rewards-smoke-") as folder, local_redis() as url:
        work = Path(folder)
        wheel = build(work / "dist")
        deployment = work / "deployment"
        for extra, use in (("training", use_training), ("", use_library), ("http", use_service)):
            started = time.monotonic()
            use(Installed(work, wheel, extra), deployment, url)
            print(f"query-rewards[{extra}]: {time.monotonic() - started:.0f} s", file=sys.stderr)  # noqa: T201


def build(target: Path) -> Path:
    """The wheel, made of the source archive; both hold every file of the packages."""
    run(uv(), "build", "--quiet", "--out-dir", target, ROOT)
    (wheel,), (archive,) = target.glob("*.whl"), target.glob("*.tar.gz")
    files = {file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*") if file.suffix in KINDS}
    files.add(Path("query_rewards.py"))
    assert len(files) > 100
    with zipfile.ZipFile(wheel) as held:
        missing = files - {Path(name) for name in held.namelist()}
        assert not missing, f"the wheel lacks {sorted(map(str, missing))}"
    with tarfile.open(archive) as held:
        missing = files - {Path(*Path(name).parts[1:]) for name in held.getnames()}
        assert not missing, f"the source archive lacks {sorted(map(str, missing))}"
    return wheel


class Installed:
    """An environment of its own with the wheel in it, and nothing of the repository."""

    def __init__(self, work: Path, wheel: Path, extra: str) -> None:
        self.folder, self.bin = work, work / f"env-{extra or 'none'}" / "bin"
        run(uv(), "venv", "--quiet", "--python", sys.executable, self.bin.parent)
        wanted = f"{wheel}[{extra}]" if extra else wheel
        run(uv(), "pip", "install", "--quiet", "--python", self.bin / "python", "--constraint", ROOT / "requirements.txt", wanted)
        where = self.python("import serving, bandit.ope.estimators; from serving import QuerySelector; print(serving.__file__)")
        assert Path(where.strip()).is_relative_to(self.bin.parent), where

    def python(self, code: str) -> str:
        """What a program prints."""
        return run(self.bin / "python", "-c", code, cwd=self.folder)

    def verb(self, *arguments: object, status: Status = Status.DONE) -> str:
        """What a verb writes: stdout when it is done, else stderr."""
        return run(self.bin / "query-rewards", *arguments, cwd=self.folder, status=status)

    def needs(self, extra: str, *verb: str, settings: Path) -> None:
        """A verb says in one line which extra it needs."""
        options = () if verb[0] == "init" else ("--settings", settings)
        said = self.verb(*verb, *options, status=Status.USAGE)
        assert len(said.splitlines()) == 1, said
        assert f"{verb[0]} needs pip install 'query-rewards[{extra}]'" in said, said


def use_training(installed: Installed, deployment: Path, url: str) -> None:
    """Five users, from `init` to the online store."""
    installed.verb("init", deployment)
    file = deployment / DEFAULT_FILE
    file.write_text(file.read_text().replace("redis://127.0.0.1:6379/0", url))
    write_history(deployment / "h.parquet", [(f"u{n}", f"i{n + m}", "repin", NOW - m * DAY) for n in range(5) for m in range(6)])
    write_embeddings(deployment / "e.parquet", [f"i{n}" for n in range(12)], unit_vectors(12, 8))
    files = ("--history", deployment / "h.parquet", "--embeddings", deployment / "e.parquet")
    assert json.loads(installed.verb("cluster", "--settings", file, "--json", *files))["users"] == 5
    assert json.loads(installed.verb("materialize", "--settings", file, "--json"))["written"]["user_clusters"] == 5


def use_library(installed: Installed, deployment: Path, url: str) -> None:
    """Feedback goes in and queries come out; every other verb says what it needs."""
    assert " feedback " in installed.verb("--help")
    file = deployment / DEFAULT_FILE
    for verb in TRAINING_VERBS:
        installed.needs("training", *verb, settings=file)
    installed.needs("http", "serve", settings=file)
    event = dict.fromkeys(("event_id", "decision_id", "cluster_id", "query_id", "item_id"), "x")
    event |= {"user_id": "u1", "action": "repin", "occurred_at": time.time_ns() // 1000}  # type: ignore[dict-item]
    (deployment / "events.jsonl").write_text(json.dumps(event))
    answer = json.loads(installed.verb("feedback", deployment / "events.jsonl", "--settings", file, "--json"))
    assert (answer["accepted"], answer["rejected"]) == (1, 0)
    code = f"from serving import QuerySelector; print(len(QuerySelector.open({str(file)!r}).select('u1', 3).queries))"
    assert installed.python(code).strip() == "3"


def use_service(installed: Installed, deployment: Path, url: str) -> None:
    """The service answers."""
    installed.needs("training", "train", settings=deployment / DEFAULT_FILE)
    port = free_port()
    command = [str(installed.bin / "query-rewards"), "serve", "--settings", str(deployment / DEFAULT_FILE)]
    process = subprocess.Popen(command, cwd=installed.folder, env=environment() | {"QUERY_REWARDS_HTTP__PORT": str(port)})
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10.0) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the service did not come up"  # noqa: PT018
                time.sleep(0.1)
    finally:
        process.terminate()
        status = process.wait(SECONDS)
    assert status == 0, status


def uv() -> Path:
    """The installer, of the environment that runs this."""
    return Path(sys.executable).with_name("uv")


def environment() -> dict[str, str]:
    """Nothing of ours reaches the programs that are tried."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("QUERY_REWARDS_", "PYTHON", "VIRTUAL_ENV"))}


def run(*command: object, cwd: Path = ROOT, status: Status = Status.DONE) -> str:
    """Run a program that must end with this status; returns stdout when it is done, else stderr."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == status, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stderr if status else done.stdout


if __name__ == "__main__":
    main()
