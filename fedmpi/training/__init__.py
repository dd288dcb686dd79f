"""Flat models and the local training of clients.

May import from data, results and mpi; all packages above may import from here.
"""
