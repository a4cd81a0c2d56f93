"""Step 1: the class-conditional diffusion model."""
