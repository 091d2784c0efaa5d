"""Methods compared fairly: one setting, the same effort for each, many seeds, one page of results."""
