"""Language models: policy, value head, tiny ones."""
