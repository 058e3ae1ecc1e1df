"""From representations and labels to numbers, and what to read them against."""
