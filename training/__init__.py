"""The batch side of Query Rewards: one file per step, and the command line."""
