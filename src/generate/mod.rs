//! Generation: sampling and batched decoding over a key/value cache.
