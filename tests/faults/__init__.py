"""Faults on purpose: each is made, at random moments, and the daemon is to survive it."""
