"""Readiness: the checks behind an application's scorecard."""
