"""Scores and tasks that come from, or go to, other people's tools."""
