"""What ``backbone_swap.py`` measures and draws."""
