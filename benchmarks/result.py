"""What a benchmark returns, and the file it leaves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

OUT = Path("out/bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. `limit` is the least or the most that it may be, by `better`; `detail` says how it was measured."""

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    limit: float
    detail: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether the limit holds; a value that is not a number never does."""
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit

    def write(self) -> None:
        """Leave out/bench/NAME.json."""
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{self.name}.json").write_text(json.dumps({**asdict(self), "holds": self.holds}, indent=1), encoding="utf-8")
