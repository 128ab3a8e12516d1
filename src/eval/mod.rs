//! Evaluation: how well a model answers rows it has not seen.
