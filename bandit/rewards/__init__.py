"""From events to decayed sums and rates."""
