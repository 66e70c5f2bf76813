"""Latent diffusion: base models, schedules, the slot sampler, prompts."""
