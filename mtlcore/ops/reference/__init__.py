"""The specification of every op: plain torch, in float64, no options."""
