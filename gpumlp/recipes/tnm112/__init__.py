"""Report tnm112: batch sizes, activations and depth on clusters in the plane, and weights moved from Keras."""
