"""Run logged steps again: from the log and an optimizer's rule to states and parameters."""
