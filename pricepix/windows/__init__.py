"""Which windows of a panel become images, and the forward returns after them."""
