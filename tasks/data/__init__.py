"""Texts written for this project, under its licence."""
