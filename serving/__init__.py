"""The library that a retrieval service calls."""

from serving.feedback_log import FeedbackLog, Recorded, RejectedEvent
from serving.selection import Selection
from serving.selector import QuerySelector

__all__ = ["FeedbackLog", "QuerySelector", "Recorded", "RejectedEvent", "Selection"]
