"""Flow matching: the path, its times, its losses, its sampler. Pure functions on tensors."""
