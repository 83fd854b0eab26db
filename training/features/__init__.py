"""From logs to the feature views, offline and online."""
