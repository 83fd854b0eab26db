"""From joined logs to the model that serves."""
