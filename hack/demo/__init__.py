"""The main job, end to end, on a real cluster: what `make demo` runs. The e2e tests use the same pieces."""
