"""How fast fedmpi is, beside a bare loop that does the same arithmetic: python -m benchmarks --help."""
