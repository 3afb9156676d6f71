"""Shipkeeper: what the operator, the migration worker and an application share. Nothing here knows Kubernetes' API."""

__version__ = "0.1.0"
