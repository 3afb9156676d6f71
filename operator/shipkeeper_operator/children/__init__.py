"""Builders of child objects. No I/O."""
