"""Running the suite: the pytest plugin, one case, shards of generated programs, a run's report."""
