"""Networks that are trained already, measured alike and put beside each other, without any training."""
