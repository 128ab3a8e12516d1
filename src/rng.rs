//! Named random streams: every use of chance draws from its own stream, so that adding one never shifts another.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// A reproducible generator for one purpose, e.g. `stream(seed, "shuffle", epoch)`.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(purpose.as_bytes());
    hash.update(index.to_le_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    ChaCha8Rng::from_seed(digest)
}

/// A seed for generators that are not ours, from the same streams.
pub fn number(seed: u64, purpose: &str, index: u64) -> u64 {
    use rand::Rng;
    stream(seed, purpose, index).next_u64()
}
