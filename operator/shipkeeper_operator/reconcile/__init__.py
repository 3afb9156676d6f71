"""One module per resource: pure functions from (resource, observed) to (desired children, status). No I/O."""
