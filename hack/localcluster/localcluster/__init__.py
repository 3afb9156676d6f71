"""A real Kubernetes for the demo and the tests, made on the machine at hand.

Standard library only: `make` calls this package before any virtual environment exists.
`python3 -m localcluster --help` lists what it does.
"""
