"""One module per resource that writes outside the API server. I/O, no decisions."""
