"""Sweeps: many runs, of a grid of settings or of a list, each with several seeds; and which setting is the best."""
