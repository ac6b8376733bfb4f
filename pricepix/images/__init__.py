"""Images with their index and forward returns, drawn on demand, and everything that reads them."""
