"""From scores to quotas to queries."""
