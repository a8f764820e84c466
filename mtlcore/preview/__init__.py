"""What the model gets to see: rows as tokens, and the batches of a step."""
