"""Off-policy evaluation: estimators, intervals, diagnostics, the gate."""
