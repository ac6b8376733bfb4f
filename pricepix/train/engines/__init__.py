"""What runs a trained network on images: torch with its layers fused, and what a network is exported to."""
