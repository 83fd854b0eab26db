"""How many one-line changes of `bandit/` the tests notice: a sample of mutmut's mutants, drawn with a seed (`make mutants`).

mutmut runs in a copy of the tree that holds no compiled module, for Python would import that instead of the mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "out" / "mutants"
SURVIVED, NO_TEST, TIMEOUTS = 0, {5, 33}, {-24, 24, 36, 152, 255}  # mutmut's exit codes


def copied() -> None:
    """The tree as it stands, without what git ignores."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY / name)
    assert not list(COPY.rglob("*.so"))


def mutmut(*names: str) -> None:
    """Let mutmut try these mutants; its output goes to a file, for it draws spinners."""
    environment = os.environ | {"LAW_EXAMPLES": "10"}
    with (COPY / "mutmut.log").open("a") as log:
        command = [Path(sys.executable).with_name("mutmut"), "run", *names]
        subprocess.run(command, cwd=COPY, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)


def results() -> dict[str, int | None]:
    """Exit code of each mutant, None where it was not tried."""
    files = sorted((COPY / "mutants").rglob("*.meta"))
    return {name: code for file in files for name, code in json.loads(file.read_text())["exit_code_by_key"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="mutants to try; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    started = time.monotonic()
    copied()
    mutmut("no mutant has this name")  # makes the mutants, and learns which test runs which function
    everything = sorted(results())
    if not (COPY / "mutants" / "mutmut-stats.json").exists():
        sys.exit(f"mutmut could not run the tests: see {COPY / 'mutmut.log'}")
    count = chosen.sample or len(everything)
    names = sorted(random.Random(chosen.seed).sample(everything, min(count, len(everything))))
    print(f"{len(everything)} mutants, {len(names)} of them are tried (seed {chosen.seed})", file=sys.stderr, flush=True)
    mutmut(*names)
    tried = {name: code for name, code in results().items() if name in names and code is not None}
    assert tried, f"no mutant was tried: see {COPY / 'mutmut.log'}"
    kinds = Counter(
        "survived" if c == SURVIVED else "no test" if c in NO_TEST else "timeout" if c in TIMEOUTS else "noticed" for c in tried.values()
    )
    unnoticed = sorted(name for name, code in tried.items() if code == SURVIVED or code in NO_TEST)
    print("\n".join(unnoticed))
    share = 1.0 - len(unnoticed) / len(tried)
    print(f"{share:.0%} of {len(tried)} mutants were noticed ({dict(kinds)}) in {(time.monotonic() - started) / 60.0:.0f} minutes")


if __name__ == "__main__":
    main()
