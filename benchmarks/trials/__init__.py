"""What `resilience.py` tries: a module for each part, with ``run(trial)``."""
