"""The commands of ``xencolo``, by matter; :mod:`xencolod.cli` puts them together.

Their modules import click and little else at the top: what a command needs it imports when it runs,
so that ``xencolo --help`` and the shell's completion answer at once.
"""
