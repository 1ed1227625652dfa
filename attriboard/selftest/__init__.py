"""What a method's definition implies, checked on tiny random models."""
