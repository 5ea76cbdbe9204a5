"""A real Kubernetes on one Linux machine, built from source, for the demo and the tests.

Standard library only: this code runs before any virtual environment exists.
`hack/cluster` is its command line, `CONTRIBUTING.md` its manual.
"""
