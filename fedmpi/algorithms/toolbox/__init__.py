"""What several methods share: distillation, fusion of models, allocation of clients, clustering."""
