"""Schedules: a value for each step."""
