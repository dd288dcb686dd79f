"""Flat models and the local training of clients.

May import from data, results and mpi; every folder above may import from here.
"""
