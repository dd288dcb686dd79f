"""Pictures of runs, as PNG, PDF or SVG that can go into a paper as they are: one file per kind.

May import from the rest of results, of which only the command line imports from here.
"""
