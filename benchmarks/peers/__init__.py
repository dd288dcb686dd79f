"""Whole runs of fedmpi and of other simulators on the same work, each on two processes that train.

Every program takes a workload, a number of rounds and a memory order, and prints lines as `Work.report` does.
"""
