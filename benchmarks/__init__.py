"""The speed of fedmpi, compared with a plain loop that does the same arithmetic: python -m benchmarks --help."""
