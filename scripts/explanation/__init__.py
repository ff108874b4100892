"""What explain.py is made of."""
