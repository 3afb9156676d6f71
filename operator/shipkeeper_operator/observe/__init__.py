"""One module per resource: what is true now, as plain data. I/O, no decisions."""
