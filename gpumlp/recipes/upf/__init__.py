"""Report upf: a small network by hand and in PyTorch."""
