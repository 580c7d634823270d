"""What the speed and learning tables compare circuitsim with, written for the comparison in plain PyTorch."""
