"""Pictures of runs as PNG, PDF or SVG files, ready for a paper. Each module draws one kind of picture.

This folder may import from the rest of `fedmpi.results`. Of the rest, only the command line imports from this folder.
"""
