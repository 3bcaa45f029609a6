"""The kernel-size study: networks that differ in their kernels only, trained and measured alike."""
