"""Tiles to arrays and arrays to tiles. The only code that starts threads."""
