"""Plans of context parallelism: which process attends with which heads over which blocks."""
