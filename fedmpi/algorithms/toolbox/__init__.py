"""Code that several methods share: distillation, fusion of models, allocation of clients, clustering.

May import the same as methods, but no method.
"""
