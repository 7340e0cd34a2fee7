"""vLLM as a generator, in the training process or behind HTTP."""
