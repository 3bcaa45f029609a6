"""What every run leaves and shares: results, its folder, its state, hashes, processes, memory."""
