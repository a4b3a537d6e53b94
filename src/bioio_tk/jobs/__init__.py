"""Work on whole files: convert, describe, show, recover."""
