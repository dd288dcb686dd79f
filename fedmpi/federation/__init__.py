"""The interface between methods and an experiment: clients that train, the server's work, evaluations, reports.

May import from policies, models, training, data, results and mpi; experiment and algorithms import from here.
"""
