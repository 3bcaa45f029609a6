"""Whether an observer, network or person, goes by shape or by texture."""
