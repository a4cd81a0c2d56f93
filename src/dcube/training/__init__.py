"""Order, loop, state, EMA, runtime and log: everything a training needs that is not the model."""
