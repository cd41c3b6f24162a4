"""A published stage as people take it away: a folder that transformers loads, its card, and its recipe."""
