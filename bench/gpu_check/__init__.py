"""What only a GPU can prove: every kernel, product and executor against float64 on the CPU, and how fast they are.

``python -m bench.gpu_check`` is one command for a machine with a GPU and no network, pytest or Numba; ``--device
host`` runs the same checks on the stand-in for a GPU, small and slow, to test the checks themselves.
"""

from bench.checkout import find_here

find_here()
