"""The stream: feedback and decisions folded as they happen, each exactly once, by one process or many."""
