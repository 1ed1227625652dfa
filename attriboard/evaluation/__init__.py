"""The score families: each measures per example, and says how its aggregates come from those measurements."""
