"""The bench: every data set, scenario, metric and rival method through one door."""
