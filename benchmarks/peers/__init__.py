"""Benchmarks against other packages, each an optional extra: `python -m benchmarks.peers.NAME`."""
