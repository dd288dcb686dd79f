"""Flat models and the local training of clients."""
