"""One thin module per resource: kopf's events in, keys into the work queue. No logic."""
