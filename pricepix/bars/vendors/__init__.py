"""The shapes in which vendors and their clients hand out bars, one file each: each becomes one table of bars."""
