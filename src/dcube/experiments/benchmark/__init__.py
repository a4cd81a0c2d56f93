"""Many systems on the same terms: the cells of a benchmark, their order, and what they say together."""
