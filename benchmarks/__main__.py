"""`make bench`: run every file of this folder in a process of its own, print one table, fail when a limit does not hold."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.result import OUT

SHARED = {"__init__", "__main__", "result", "timing", "world"}


def main() -> int:
    """Run them all; returns the exit status."""
    console = Console()
    files = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in SHARED)
    for old in OUT.glob("*.json"):
        old.unlink()
    broken = []
    for name in files:
        console.print(f"[dim]running {name}[/]")
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            broken.append(name)
    table = Table(title=f"{platform.machine()}, Python {platform.python_version()}")
    for heading in ("figure", "value", "unit", "limit", "holds"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(OUT.glob("*.json"))]
    for result in results:
        sign = "<=" if result["better"] == "lower" else ">="
        table.add_row(
            result["name"], f"{result['value']:.4g}", result["unit"], f"{sign} {result['limit']:g}", "yes" if result["holds"] else "NO"
        )
    console.print(table)
    for name in broken:
        console.print(f"[bold]benchmarks/{name}.py did not finish[/]")
    return 1 if broken or not results or not all(result["holds"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
