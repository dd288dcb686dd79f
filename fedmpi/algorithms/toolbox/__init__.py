"""What several methods share: distillation, fusion of models, allocation of clients, clustering.

May import what methods may, but no method.
"""
