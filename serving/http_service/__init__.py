"""The selector as an HTTP service: `query-rewards serve`."""
