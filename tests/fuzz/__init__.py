"""Fuzzers: `targets` says what is fed, hypothesis feeds it in the tests and atheris in `make fuzz`."""
