"""What learns: features, the linear model, Vowpal Wabbit behind it."""
