"""The command ``bioio-tk``. Its modules import only click; the rest comes when a command runs."""
