"""Video diffusion: DiT, VAE, encoders of prompts, DSV."""
