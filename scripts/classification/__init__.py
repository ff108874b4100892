"""What classify.py and compare.py are made of."""
