"""Questions asked of finished runs, each a small function over the pieces above."""
