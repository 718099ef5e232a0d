"""The commands of ``gpumlp``, a module each.

Each has ``add_parser(subparsers)``, which sets ``run`` as its function, and ``run(args) -> int``, which does the work
and returns the exit code. A user's mistake is a ValueError, TypeError or OSError, which `gpumlp.cli` prints as one
line. What is heavy is imported inside ``run``. Results go to stdout, progress and notices to stderr.
"""
