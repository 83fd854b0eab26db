"""Is a policy better? Off-policy evaluation, experiments, explanations."""
