"""Parts of reinforcement learning: types, generators, advantages, losses, batches. They know no Run."""
