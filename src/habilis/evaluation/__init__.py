"""F4: how good a policy is, said honestly: evaluator, statistics, reports and videos."""
