"""nn.Modules: policy, value, and how one decodes from them. They know no Run."""
