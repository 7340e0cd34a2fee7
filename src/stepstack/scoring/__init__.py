"""Pure scores of texts, used by rewards and by evals alike. No torch."""
