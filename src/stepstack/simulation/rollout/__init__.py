"""StreamRL's pipelines in simulation: instances that batch continuously, a trainer, and the weights between them.

``fleet`` has instances and dispatch, ``pipelines`` the six ways to overlap generation and training, ``study`` the
comparison of a file, ``published`` the paper's experiments, ``figures`` the pictures. Built on simpy. No torch.
"""
