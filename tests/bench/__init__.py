"""``make bench``: what xencolo takes, against what others take for the same on the same real server.

``python -m tests.bench [NAME…]`` runs some parts alone. One table shows all; the exit status says whether
the targets are met.
"""
