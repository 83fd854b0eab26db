"""Share of the oracle's reward in the drifting world of `tests/worlds.py`: the bandit and its rivals, feedback at once and late."""

from __future__ import annotations

from benchmarks.result import Result
from tests.arena import AT_ONCE, LATE, drifting_shares

LIMITS = {AT_ONCE: ("drifting_world_at_once", 0.86), LATE: ("drifting_world_late", 0.78)}


def main() -> None:
    shares = drifting_shares()
    for lag, (name, limit) in LIMITS.items():
        detail = {policy: round(share, 4) for (policy, of), share in shares.items() if of == lag}
        print(name, detail)
        Result(name=name, value=shares["bandit", lag], unit="share", better="higher", limit=limit, detail=detail).write()


if __name__ == "__main__":
    main()
