"""Paths that people configure: folders and files of this machine, spelled as they are."""

from __future__ import annotations

import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: `C:/` is a folder
_VARIABLE = re.compile(r"(^|/)\$\{?[A-Za-z_]")


def local_path(value: str | Path) -> Path:
    """The path with `~` expanded; every other character stands for itself.

    Raises: ValueError for a URL, a variable of the shell, or a path that no file can have.
    """
    text = str(value)
    if _URL.match(text):
        raise ValueError(f"expected a path of this machine, not the URL of an object store or service: {text!r}; copy or mount it")
    if _VARIABLE.search(text):
        raise ValueError(f"variables are not replaced in paths: {text!r}")
    if "\0" in text or "\n" in text or not text.strip():
        raise ValueError(f"expected a path, received {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for {text!r}") from error
