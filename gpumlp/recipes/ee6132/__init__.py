"""Report ee6132: a network with three hidden layers on MNIST, its rates, activations and penalties."""
