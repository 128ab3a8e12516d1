//! Provides named random streams.
//!
//! Every use of randomness has a stream of its own, determined by seed, purpose and index. So a new use never changes
//! the random numbers of another, and any place of a run can be repeated without what preceded it.

pub mod mersenne_twister;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Returns a reproducible generator for one purpose, e.g. `stream(seed, "shuffle", epoch)`.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(purpose.as_bytes());
    hash.update(index.to_le_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    ChaCha8Rng::from_seed(digest)
}

/// Returns a seed, derived in the same way, for random generators of other libraries.
pub fn derived_seed(seed: u64, purpose: &str, index: u64) -> u64 {
    use rand::Rng;
    stream(seed, purpose, index).next_u64()
}
