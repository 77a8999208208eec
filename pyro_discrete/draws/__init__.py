"""Noise and draws, in torch alone: Gumbel noise, couplings, softening, schedules, how soft values are scored."""
