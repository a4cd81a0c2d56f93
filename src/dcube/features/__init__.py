"""What the frozen diffusion model knows: taps, the Gaussianity test, the sub-feature CNN, the cache."""
