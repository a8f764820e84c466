"""The backbone, its rank-space adapters, and what they need to know of a batch."""
