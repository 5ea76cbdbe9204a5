"""Requests to the cluster."""
