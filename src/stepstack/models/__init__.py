"""Models as nn.Modules: policy, value, vision and video. They know no Run."""
