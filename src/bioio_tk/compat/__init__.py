"""Drop-in modules for code written for other tools, with their names and their quirks."""
