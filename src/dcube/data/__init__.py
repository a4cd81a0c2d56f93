"""From image files to tables, splits, stored pixels and pairs."""
