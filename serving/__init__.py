"""The library that a retrieval service calls."""

from serving.selector import QuerySelector, Selection

__all__ = ["QuerySelector", "Selection"]
