"""A run of an experiment: settings and their checks, rounds, recording, its end, and how it is resumed.

May import from all packages of fedmpi. Only the programs (`fedmpi.__main__`, `fedmpi.doctor`) import from here.
"""
