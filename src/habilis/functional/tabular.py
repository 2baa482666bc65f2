"""What the next state is worth to a learner with a table: the one thing in which the tabular methods differ.

Each function takes the next state's action values twice: those that choose an action and those that judge it. They are
the same for a single table; for Double Q-learning (van Hasselt 2010) they are two tables learnt from different samples,
so that an action that looks good by chance is not also judged by that chance. Of actions that are chosen alike it is
the mean: what breaking ties at random comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Bootstrap = Callable[[Sequence[float], Sequence[float], int, float], float]
"""(choosing `[A]`, judging `[A]`, next action, epsilon) -> value of the next state."""


def greedy_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the value of the best action: Q-learning (Watkins 1989), whatever is done next."""
    best = max(choosing)
    if choosing is judging:
        return best
    chosen = [judged for choice, judged in zip(choosing, judging, strict=True) if choice == best]
    return sum(chosen) / len(chosen)


def sampled_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the value of what is done next: SARSA (Rummery and Niranjan 1994)."""
    return judging[next_action]


def expected_value(choosing: Sequence[float], judging: Sequence[float], next_action: int, epsilon: float) -> float:
    """Return the mean over what an epsilon-greedy policy may do next: Expected SARSA (van Seijen et al. 2009)."""
    best = greedy_value(choosing, judging, next_action, epsilon)
    return best + epsilon * (sum(judging) / len(judging) - best)


BOOTSTRAPS: Mapping[str, Bootstrap] = {"greedy": greedy_value, "sampled": sampled_value, "expected": expected_value}
"""By the name of the target."""
