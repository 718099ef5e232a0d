"""Report mlpnn: a wide layer of single perceptrons on MNIST, full batch, cross-entropy and KL divergence."""
