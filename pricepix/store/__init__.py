"""Image stores: the format, reading, verifying, and what writers share."""
