"""Plans of pipeline parallelism: which chunk of a model lies on which rank, and the order of its passes for a batch."""
