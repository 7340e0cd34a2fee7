"""Which process attends with which heads over which blocks."""
