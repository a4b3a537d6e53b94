"""Many conversions as one job: what they are, what becomes of each, in which process."""
