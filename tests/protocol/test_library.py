import doctest

import xencolo


def test_the_examples_of_the_library_are_so() -> None:
    failed, tried = doctest.testmod(xencolo)
    assert (failed, tried > 0) == (0, True)
