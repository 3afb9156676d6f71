"""The HTTP surface: probes and metrics for the platform, campaigns and records for callers with a key."""
