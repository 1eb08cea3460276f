"""What the attention modules of a trained network do, and which of them could be constants."""
