"""Flat models and the local training of clients.

May import from data, results and mpi; every room above may import from here.
"""
