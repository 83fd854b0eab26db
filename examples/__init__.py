"""Query Rewards at work: the story of the published system, and a replay on real data."""
