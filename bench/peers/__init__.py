"""gpumlp beside its peers: the same trainings in other libraries, each as its own experts would write them.

``python -m bench.peers`` runs them all; ``contract.py`` says what a peer is, ``registry.py`` names them.
"""

from bench.checkout import find_here

find_here()
