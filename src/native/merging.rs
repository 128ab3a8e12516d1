//! Rust interface to the loops of native/merge.h, which merge whole models: over slices, on the calling thread.
//!
//! Slices of one call have one length; each function panics if they do not.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// Bins of [`MergeKernels::count_upper`].
pub const UPPER_BINS: usize = 1 << 15;
/// Bins of [`MergeKernels::count_lower`].
pub const LOWER_BINS: usize = 1 << 16;

type Vectors = *const *const f32;

/// One build of the loops, for one instruction set; has the layout of `FtMergeKernels` in native/merge.h.
#[repr(C)]
pub struct MergeKernels {
    name: *const c_char,
    widen: unsafe extern "C" fn(*const u16, *mut f32, i64),
    narrow: unsafe extern "C" fn(*const f32, *mut u16, i64),
    finite: unsafe extern "C" fn(*const f32, i64) -> bool,
    subtract: unsafe extern "C" fn(*const f32, *const f32, *mut f32, i64),
    combine: unsafe extern "C" fn(Vectors, *const f32, i64, *const f32, *mut f32, i64),
    elect: unsafe extern "C" fn(Vectors, *const f32, *const f32, i64, bool, f32, f32, *const f32, *mut f32, i64),
    products: unsafe extern "C" fn(Vectors, i64, *mut f64, i64),
    signs: unsafe extern "C" fn(Vectors, i64, *mut i64, i64),
    magnitude: unsafe extern "C" fn(*const f32, i64) -> f64,
    count_upper: unsafe extern "C" fn(*const f32, *mut u32, i64),
    count_lower: unsafe extern "C" fn(*const f32, u32, *mut u32, i64),
    count_equal: unsafe extern "C" fn(*const f32, f32, i64) -> i64,
    keep: unsafe extern "C" fn(*mut f32, f32, bool, f32, bool, f32, i64),
    keep_random: unsafe extern "C" fn(*mut f32, *const f64, *const f64, f32, i64),
    keep_share: unsafe extern "C" fn(*mut f32, *const f64, f64, f32, i64),
}

// SAFETY: a table of function pointers and a string, all constant.
unsafe impl Sync for MergeKernels {}

unsafe extern "C" {
    fn ft_merge_kernels(level: c_int) -> *const MergeKernels;
}

/// Magnitudes between two limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MagnitudeRange {
    /// Magnitudes above this are inside.
    pub least: f32,
    /// Whether `least` itself is inside.
    pub with_least: bool,
    /// Magnitudes above this are outside.
    pub most: f32,
    /// Whether `most` itself is outside.
    pub without_most: bool,
}

/// How the changes that have the elected sign become a mean; see [`MergeKernels::elect`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ElectedMean {
    /// Whether their sum is divided by the sum of their weights; by 1 where that is 0.
    pub normalise: bool,
    /// What it is at least divided by.
    pub least: f32,
    /// What the result is multiplied by before the base is added.
    pub lambda: f32,
}

/// Returns the builds that this processor can run, best first.
pub fn available() -> &'static [&'static MergeKernels] {
    static BUILDS: OnceLock<Vec<&'static MergeKernels>> = OnceLock::new();
    BUILDS.get_or_init(|| {
        // SAFETY: it returns null or a constant table.
        let mut found: Vec<_> = (0..).map_while(|level| unsafe { ft_merge_kernels(level).as_ref() }).collect();
        found.reverse();
        found
    })
}

/// Returns the best build for this processor.
pub fn best() -> &'static MergeKernels {
    available()[0]
}

/// Returns the addresses of vectors. Panics if one has another length than `n`.
fn addresses(vectors: &[&[f32]], n: usize) -> Vec<*const f32> {
    assert!(vectors.iter().all(|vector| vector.len() == n));
    vectors.iter().map(|vector| vector.as_ptr()).collect()
}

// Each function checks the lengths that its loop relies on.
impl MergeKernels {
    /// Returns the name of the instruction set.
    pub fn name(&self) -> &'static str {
        // SAFETY: a constant string.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("?")
    }

    /// Converts bfloat16, given as bits, to float32.
    pub fn widen(&self, x: &[u16], y: &mut [f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: two slices of one length.
        unsafe { (self.widen)(x.as_ptr(), y.as_mut_ptr(), x.len() as i64) }
    }

    /// Rounds float32 to the bits of bfloat16: to nearest, ties to even.
    pub fn narrow(&self, x: &[f32], y: &mut [u16]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: two slices of one length.
        unsafe { (self.narrow)(x.as_ptr(), y.as_mut_ptr(), x.len() as i64) }
    }

    /// Returns true if no number is NaN or infinite.
    pub fn finite(&self, x: &[f32]) -> bool {
        // SAFETY: a slice and its length.
        unsafe { (self.finite)(x.as_ptr(), x.len() as i64) }
    }

    /// Computes z = x - y.
    pub fn subtract(&self, x: &[f32], y: &[f32], z: &mut [f32]) {
        assert!(x.len() == z.len() && y.len() == z.len());
        // SAFETY: three slices of one length.
        unsafe { (self.subtract)(x.as_ptr(), y.as_ptr(), z.as_mut_ptr(), z.len() as i64) }
    }

    /// Computes the sum of the terms times their factors, plus `added`.
    pub fn combine(&self, terms: &[&[f32]], factors: &[f32], added: Option<&[f32]>, y: &mut [f32]) {
        let pointers = addresses(terms, y.len());
        assert!(factors.len() == terms.len() && !terms.is_empty() && added.is_none_or(|more| more.len() == y.len()));
        let added = added.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: slices of one length, or null for `added`; as many factors as terms.
        unsafe {
            let count = terms.len() as i64;
            (self.combine)(pointers.as_ptr(), factors.as_ptr(), count, added, y.as_mut_ptr(), y.len() as i64)
        }
    }

    /// Elects the sign of each entry, that of the sum of the changes (0 counts as +), adds up the changes that have it times their
    /// factors, divides by the sum of their weights if `mean` says so, and adds the base.
    pub fn elect(
        &self,
        changes: &[&[f32]],
        factors: &[f32],
        weights: &[f32],
        mean: ElectedMean,
        base: &[f32],
        y: &mut [f32],
    ) {
        let pointers = addresses(changes, y.len());
        assert!(factors.len() == changes.len() && weights.len() == changes.len() && base.len() == y.len());
        let ElectedMean { normalise, least, lambda } = mean;
        let (factors, weights, count) = (factors.as_ptr(), weights.as_ptr(), changes.len() as i64);
        let (base, y, n) = (base.as_ptr(), y.as_mut_ptr(), y.len() as i64);
        // SAFETY: slices of one length; as many factors and weights as changes.
        unsafe { (self.elect)(pointers.as_ptr(), factors, weights, count, normalise, least, lambda, base, y, n) }
    }

    /// Adds the inner products of all pairs of vectors to `sums`: the upper triangle of the table with its diagonal, row by row.
    pub fn products(&self, vectors: &[&[f32]], sums: &mut [f64]) {
        let n = vectors.first().map_or(0, |vector| vector.len());
        let pointers = addresses(vectors, n);
        assert_eq!(sums.len(), vectors.len() * (vectors.len() + 1) / 2);
        // SAFETY: slices of one length, and a sum for each pair.
        unsafe { (self.products)(pointers.as_ptr(), vectors.len() as i64, sums.as_mut_ptr(), n as i64) }
    }

    /// Returns the number of entries where at least two vectors are not zero, and of those where two signs differ.
    pub fn signs(&self, vectors: &[&[f32]]) -> (i64, i64) {
        let n = vectors.first().map_or(0, |vector| vector.len());
        let pointers = addresses(vectors, n);
        let mut found = [0i64; 2];
        // SAFETY: slices of one length.
        unsafe { (self.signs)(pointers.as_ptr(), vectors.len() as i64, found.as_mut_ptr(), n as i64) }
        (found[0], found[1])
    }

    /// Returns the sum of magnitudes.
    pub fn magnitude(&self, x: &[f32]) -> f64 {
        // SAFETY: a slice and its length.
        unsafe { (self.magnitude)(x.as_ptr(), x.len() as i64) }
    }

    /// Adds to `counts` how many numbers have each value of the upper 15 bits of their magnitude.
    pub fn count_upper(&self, x: &[f32], counts: &mut [u32]) {
        assert_eq!(counts.len(), UPPER_BINS);
        // SAFETY: a bin for each value of 15 bits.
        unsafe { (self.count_upper)(x.as_ptr(), counts.as_mut_ptr(), x.len() as i64) }
    }

    /// Adds to `counts` how many numbers with these upper bits have each value of the lower 16 bits.
    pub fn count_lower(&self, x: &[f32], upper: u32, counts: &mut [u32]) {
        assert_eq!(counts.len(), LOWER_BINS);
        // SAFETY: a bin for each value of 16 bits.
        unsafe { (self.count_lower)(x.as_ptr(), upper, counts.as_mut_ptr(), x.len() as i64) }
    }

    /// Returns how many numbers have this magnitude.
    pub fn count_equal(&self, x: &[f32], magnitude: f32) -> i64 {
        // SAFETY: a slice and its length.
        unsafe { (self.count_equal)(x.as_ptr(), magnitude, x.len() as i64) }
    }

    /// Multiplies the numbers whose magnitude is inside the range by `factor`, and sets the others to 0.
    pub fn keep(&self, x: &mut [f32], range: MagnitudeRange, factor: f32) {
        let MagnitudeRange { least, with_least, most, without_most } = range;
        // SAFETY: a slice and its length.
        unsafe { (self.keep)(x.as_mut_ptr(), least, with_least, most, without_most, factor, x.len() as i64) }
    }

    /// Multiplies the numbers whose random number is below its probability by `factor`, and sets the others to 0.
    pub fn keep_random(&self, x: &mut [f32], random: &[f64], probability: &[f64], factor: f32) {
        assert!(random.len() == x.len() && probability.len() == x.len());
        // SAFETY: three slices of one length.
        unsafe { (self.keep_random)(x.as_mut_ptr(), random.as_ptr(), probability.as_ptr(), factor, x.len() as i64) }
    }

    /// Does the same with one probability for all.
    pub fn keep_share(&self, x: &mut [f32], random: &[f64], probability: f64, factor: f32) {
        assert_eq!(random.len(), x.len());
        // SAFETY: two slices of one length.
        unsafe { (self.keep_share)(x.as_mut_ptr(), random.as_ptr(), probability, factor, x.len() as i64) }
    }
}
