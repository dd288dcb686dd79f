"""What a method sees of an experiment: clients that train, the server's work, measurements, reports.

May import from policies, models, training, data, results and mpi; experiment and algorithms import from here.
"""
