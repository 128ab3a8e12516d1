//! Training: the one loop that serves every method.
