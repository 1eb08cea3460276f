"""What the records of a study add up to: numbers only."""
