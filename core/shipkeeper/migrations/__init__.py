"""Data migrations: plan, ledger, batches, consolidation, indexes, verification, and the worker that runs them."""
