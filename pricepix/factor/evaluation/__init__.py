"""What a factor is worth: statistics, portfolios and baselines on its market."""
