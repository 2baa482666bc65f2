"""F2: where experience is kept: rollouts, replay, episode statistics."""
