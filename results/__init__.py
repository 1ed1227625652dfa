"""The records of reference runs; those of ``quick/`` are installed as ``attriboard.reference``."""
