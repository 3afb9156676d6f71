"""The operator: what is true is observed, what should be is computed, the difference is written."""
