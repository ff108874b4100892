"""The pictures of figures.py, one file each: computed by the library, drawn, described."""
