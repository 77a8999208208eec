"""How noisy gradients are: variance, bias, and what lessens them."""
