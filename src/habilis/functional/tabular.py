"""What the next state is worth to a learner with a table: the one thing in which the tabular methods differ.

Each function takes the next state's action values twice: those that choose an action and those that judge it. They are
the same for a single table; for Double Q-learning (van Hasselt 2010) they are two tables learnt from different samples,
so that an action that looks good by chance is not also judged by that chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Bootstrap = Callable[[Sequence[float], Sequence[float], int, float], float]
"""(choosing `[A]`, judging `[A]`, next action, epsilon) -> value of the next state."""


def greedy_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the value of the best action: Q-learning (Watkins 1989), whatever is done next."""
    return judging[choosing.index(max(choosing))]


def sampled_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the value of what is done next: SARSA (Rummery and Niranjan 1994)."""
    return judging[next_action]


def expected_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the mean over what an epsilon-greedy policy may do next: Expected SARSA (van Seijen et al. 2009)."""
    best = judging[choosing.index(max(choosing))]
    return best + epsilon * (sum(judging) / len(judging) - best)


BOOTSTRAPS: Mapping[str, Bootstrap] = {"greedy": greedy_value, "sampled": sampled_value, "expected": expected_value}
"""By the name of the target."""
