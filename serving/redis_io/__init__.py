"""Exchanges with Redis within a deadline."""
