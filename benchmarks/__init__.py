"""Speed of fedmpi compared with a bare loop that does the same arithmetic: python -m benchmarks --help."""
