"""A Prometheus for the local cluster that follows monitors and rules as the Prometheus Operator's does.

Debian's Prometheus is built without the discovery of targets in Kubernetes, so a program beside it reads the API and
writes what Prometheus reads. Standard library only. `hack/cluster addon prometheus` installs it.
"""
