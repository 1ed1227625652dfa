"""What is measured: the types of stored measurements, their metrics, and what follows from them; without torch."""
