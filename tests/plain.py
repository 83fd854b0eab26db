"""The modules that setup.py compiles, and the Python that they are made from."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
COMPILED = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts) for package in ("bandit", "serving") for file in (ROOT / package).rglob("*.pxd")
)


@cache
def both(name: str) -> tuple[ModuleType, ModuleType]:
    """A module as it is imported, and its source run as it stands."""
    spec = importlib.util.spec_from_file_location(f"plain_{name.replace('.', '_')}", ROOT / f"{name.replace('.', '/')}.py")
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = plain  # where a dataclass looks for its module
    spec.loader.exec_module(plain)
    return importlib.import_module(name), plain
