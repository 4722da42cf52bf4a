"""Is it transfer, or tuning? Control arms, statistics and the verdict."""
