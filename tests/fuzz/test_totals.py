"""How many examples the fuzz tests of this run had: the claim of 500 and 10,000 can be checked."""

import pytest


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_the_sums_are_those_that_are_claimed(slow: bool, wanted_examples: tuple, example_counts: dict) -> None:
    examples, least = wanted_examples
    assert sum(both[slow] for both in examples.values()) >= least[slow]
    counted = example_counts[slow]
    print(f"fuzz examples: {counted}, {sum(counted.values())} in all")
    if all(counted.values()):  # all the fuzz tests ran, and before this one
        assert sum(counted.values()) >= least[slow]
