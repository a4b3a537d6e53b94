"""Pure geometry and frozen values: no files, no threads, no third-party imports but numpy."""
