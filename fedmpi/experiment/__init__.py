"""One run of one experiment: its settings, their checks, its rounds, what it records, and how it ends or resumes.

May import from every folder of fedmpi; only the programs (`fedmpi.__main__`, `fedmpi.doctor`) import from here.
"""
