//! Settings of property tests.

use proptest::test_runner::{Config, RngSeed};

/// Returns settings with this number of cases. The cases are the same in every run, and no file of failures is kept: a
/// failing case is printed and can be copied into a test.
pub fn cases(number: u32) -> Config {
    Config { cases: number, rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..Config::default() }
}
