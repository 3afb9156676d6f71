"""The resources of `shipkeeper.dev/v1alpha1`: the single source of the CRDs, of validation and of the API reference."""
