"""Whether Ray, its driver and its workers live, and the end of those whose counterpart is gone."""
