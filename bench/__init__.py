"""Speed and memory of bioio_tk beside its peers and the machine's ceilings: ``python -m bench``."""
