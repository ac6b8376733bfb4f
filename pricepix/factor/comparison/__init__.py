"""Two factors side by side: which is better, by how much, and whether one needs the other."""
