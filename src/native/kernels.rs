//! Rust interface to the fused elementwise loops of native/kernels.h: over CPU tensors, on libtorch's threads.
//!
//! Callers check [`supports`] first. For other tensors (CUDA, other dtypes) they compose the operation of libtorch's.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

type InputPtr = *const c_void;
type OutputPtr = *mut c_void;

/// One build of the loops, for one instruction set; has the layout of `FtKernels` in native/kernels.h.
#[repr(C)]
pub struct Kernels {
    name: *const c_char,
    rms_norm: unsafe extern "C" fn(bool, InputPtr, InputPtr, OutputPtr, *mut f32, i64, f32, i64, i64),
    rms_norm_backward: unsafe extern "C" fn(bool, InputPtr, InputPtr, *const f32, InputPtr, OutputPtr, i64, i64, i64),
    rms_norm_weight: unsafe extern "C" fn(bool, InputPtr, *const f32, InputPtr, *mut f32, i64, i64, i64, i64),
    swiglu: unsafe extern "C" fn(bool, InputPtr, InputPtr, OutputPtr, i64, i64),
    swiglu_backward: unsafe extern "C" fn(bool, InputPtr, InputPtr, InputPtr, OutputPtr, OutputPtr, i64, i64),
    rotate: unsafe extern "C" fn(bool, InputPtr, InputPtr, InputPtr, OutputPtr, i64, i64, f32, i64, i64),
    head: unsafe extern "C" fn(bool, OutputPtr, *const i64, *mut f32, *mut f32, *mut f32, i64, f32, bool, i64, i64),
    probabilities: unsafe extern "C" fn(bool, OutputPtr, *const f32, i64, f32, i64, i64),
    score_gradient: unsafe extern "C" fn(bool, OutputPtr, InputPtr, InputPtr, InputPtr, i64, i64, f32, i64, i64),
    exponential: unsafe extern "C" fn(*const f32, *mut f32, i64, i64),
}

// SAFETY: a table of function pointers and a string, all constant.
unsafe impl Sync for Kernels {}

unsafe extern "C" {
    fn ft_kernels(level: c_int) -> *const Kernels;
    fn ft_gather_heads(
        row: InputPtr,
        block: OutputPtr,
        places: *const i64,
        heads: i64,
        length: i64,
        bytes: i64,
        b: i64,
        e: i64,
    );
    fn ft_scatter_heads(
        block: InputPtr,
        row: OutputPtr,
        places: *const i64,
        heads: i64,
        length: i64,
        bytes: i64,
        b: i64,
        e: i64,
    );
    fn ft_parallel(rows: i64, grain: i64, f: unsafe extern "C" fn(*mut c_void, i64, i64), ctx: *mut c_void);
}

/// Returns the builds that this processor can run, best first.
pub fn available() -> &'static [&'static Kernels] {
    static BUILDS: OnceLock<Vec<&'static Kernels>> = OnceLock::new();
    BUILDS.get_or_init(|| {
        // SAFETY: it returns null or a constant table.
        let mut found: Vec<_> = (0..).map_while(|level| unsafe { ft_kernels(level).as_ref() }).collect();
        found.reverse();
        found
    })
}

/// Returns the best build for this processor.
pub fn best() -> &'static Kernels {
    available()[0]
}

/// Returns true if the loops support these tensors: on the CPU, contiguous, all float32 or all bfloat16.
pub fn supports(tensors: &[&Tensor]) -> bool {
    let kind = tensors[0].kind();
    matches!(kind, Kind::Float | Kind::BFloat16)
        && tensors.iter().all(|t| t.kind() == kind && t.device() == Device::Cpu && t.is_contiguous())
}

/// Smallest number of elements per thread for which several threads are worth their start.
const GRAIN: i64 = 16 << 10;

/// Runs `f(begin, end)` on parts of [0, rows), in parallel; each row costs about as much as `width` elements.
pub(super) fn parallel(rows: i64, width: i64, f: impl Fn(i64, i64) + Sync) {
    unsafe extern "C" fn call<F: Fn(i64, i64) + Sync>(ctx: *mut c_void, begin: i64, end: i64) {
        // SAFETY: ctx is the closure below, which outlives the loop and may be called from several threads.
        unsafe { (*(ctx as *const F))(begin, end) }
    }
    fn trampoline<F: Fn(i64, i64) + Sync>(_: &F) -> unsafe extern "C" fn(*mut c_void, i64, i64) {
        call::<F>
    }
    // SAFETY: `f` lives until the loop ends; the loops only compute, so that no panic crosses it.
    unsafe { ft_parallel(rows, (GRAIN / width.max(1)).max(1), trampoline(&f), &f as *const _ as *mut c_void) }
}

/// The address of a tensor's data, which closures may take to other threads.
#[derive(Clone, Copy)]
pub(super) struct BufferPtr(*mut c_void);

// SAFETY: the threads write disjoint rows.
unsafe impl Sync for BufferPtr {}

impl BufferPtr {
    pub(super) fn of(t: &Tensor) -> Self {
        Self(t.data_ptr())
    }
    pub(super) fn f32(&self) -> *mut f32 {
        self.0.cast()
    }
    fn i64(&self) -> *mut i64 {
        self.0.cast()
    }
    pub(super) fn any(&self) -> *mut c_void {
        self.0
    }
}

fn is_bf16(t: &Tensor) -> bool {
    t.kind() == Kind::BFloat16
}

fn floats(n: i64) -> Tensor {
    Tensor::empty([n], (Kind::Float, Device::Cpu))
}

fn row_width(t: &Tensor) -> i64 {
    t.size()[t.dim() - 1]
}

fn row_count(t: &Tensor) -> i64 {
    t.numel() as i64 / row_width(t)
}

/// Copies rows into a padded block on the CPU: (T, heads, E) -> (count, heads, length, E). Position i of the block is
/// row `places[i]`, or zeros if that is negative; without `places`, row i.
pub fn gather_heads(rows: &Tensor, places: Option<&Tensor>, count: i64, length: i64) -> Tensor {
    let rows = rows.contiguous();
    let (size, slots) = (rows.size(), count * length);
    check_rows(places, slots, size[0]);
    let block = Tensor::empty([count, size[1], length, size[2]], (rows.kind(), Device::Cpu));
    let bytes = size[2] * rows.kind().elt_size_in_bytes() as i64;
    let (from, to, at) = (BufferPtr::of(&rows), BufferPtr::of(&block), places.map(BufferPtr::of));
    // SAFETY: each thread writes positions [b, e) of the block; every place is an existing row or negative.
    parallel(slots, size[1] * size[2], |b, e| unsafe {
        let places = at.as_ref().map_or(std::ptr::null(), |p| p.i64().cast_const());
        ft_gather_heads(from.any(), to.any(), places, size[1], length, bytes, b, e)
    });
    block
}

/// Copies a block (count, heads, length, E) back to its rows of `rows` (T, heads, E), without padding.
pub fn scatter_heads(block: &Tensor, places: Option<&Tensor>, rows: &Tensor) {
    let block = block.contiguous();
    let (size, slots) = (block.size(), block.size()[0] * block.size()[2]);
    assert!(rows.is_contiguous() && rows.kind() == block.kind() && rows.size()[1..] == [size[1], size[3]]);
    check_rows(places, slots, rows.size()[0]);
    let bytes = size[3] * block.kind().elt_size_in_bytes() as i64;
    let (from, to, at) = (BufferPtr::of(&block), BufferPtr::of(rows), places.map(BufferPtr::of));
    // SAFETY: each thread reads positions [b, e) of the block; every place is an existing row or negative, no two are
    // equal.
    parallel(slots, size[1] * size[3], |b, e| unsafe {
        let places = at.as_ref().map_or(std::ptr::null(), |p| p.i64().cast_const());
        ft_scatter_heads(from.any(), to.any(), places, size[1], size[2], bytes, b, e)
    });
}

fn check_rows(places: Option<&Tensor>, slots: i64, rows: i64) {
    match places {
        None => assert!(slots == rows, "a block of {slots} positions for {rows} rows"),
        Some(p) => assert!(
            p.kind() == Kind::Int64
                && p.is_contiguous()
                && p.numel() as i64 == slots
                && p.max().int64_value(&[]) < rows
        ),
    }
}

// Each function checks what its loop relies on: sizes, dtypes and contiguity.
impl Kernels {
    /// Returns the name of the instruction set.
    pub fn name(&self) -> &'static str {
        // SAFETY: a constant string.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("?")
    }

    /// Computes e^x of float32 x, in its shape. Within 1.1 ulp; 0 below -87.33, infinite above 88.72.
    pub fn exponential(&self, x: &Tensor) -> Tensor {
        assert!(supports(&[x]) && x.kind() == Kind::Float);
        let y = x.empty_like();
        let [px, py] = [x, &y].map(BufferPtr::of);
        // SAFETY: elements [b, e) of buffers of one size.
        parallel(y.numel() as i64, 4, |b, e| unsafe { (self.exponential)(px.f32(), py.f32(), b, e) });
        y
    }

    /// Computes RMSNorm: x (…, D), w (D) -> y (…, D), and the reciprocal root mean square of each row (rows).
    pub fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> (Tensor, Tensor) {
        let (n, d) = (row_count(x), row_width(x));
        assert!(supports(&[x, w]) && w.numel() as i64 == d);
        let (y, inverse) = (x.empty_like(), floats(n));
        let (h, [px, pw, py, pi]) = (is_bf16(x), [x, w, &y, &inverse].map(BufferPtr::of));
        // SAFETY: rows [b, e) of buffers of n rows.
        parallel(n, d, |b, e| unsafe {
            (self.rms_norm)(h, px.any(), pw.any(), py.any(), pi.f32(), d, eps as f32, b, e)
        });
        (y, inverse)
    }

    /// Returns the gradient of x and, if `weight` is true, of w (D, float32), given the gradient `g` of y.
    pub fn rms_norm_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        inverse: &Tensor,
        g: &Tensor,
        weight: bool,
    ) -> (Tensor, Option<Tensor>) {
        let (n, d) = (row_count(x), row_width(x));
        assert!(supports(&[x, w, g]) && g.size() == x.size() && inverse.numel() as i64 == n);
        let gx = x.empty_like();
        let (h, [px, pw, pi, pg, pgx]) = (is_bf16(x), [x, w, inverse, g, &gx].map(BufferPtr::of));
        // SAFETY: rows [b, e) of buffers of n rows.
        parallel(n, d, |b, e| unsafe {
            (self.rms_norm_backward)(h, px.any(), pw.any(), pi.f32(), pg.any(), pgx.any(), d, b, e)
        });
        let gw = weight.then(|| {
            let gw = floats(d);
            let pgw = BufferPtr::of(&gw);
            // SAFETY: columns [b, e) of a buffer of d.
            parallel(d, n, |b, e| unsafe {
                (self.rms_norm_weight)(h, px.any(), pi.f32(), pg.any(), pgw.f32(), n, d, b, e)
            });
            gw
        });
        (gx, gw)
    }

    /// Computes silu(gate) * up.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        assert!(supports(&[gate, up]) && gate.size() == up.size());
        let y = gate.empty_like();
        let (h, [pg, pu, py]) = (is_bf16(gate), [gate, up, &y].map(BufferPtr::of));
        // SAFETY: elements [b, e) of buffers of one size.
        parallel(y.numel() as i64, 4, |b, e| unsafe { (self.swiglu)(h, pg.any(), pu.any(), py.any(), b, e) });
        y
    }

    /// Returns the gradients of gate and up, given the gradient `g` of the result.
    pub fn swiglu_backward(&self, gate: &Tensor, up: &Tensor, g: &Tensor) -> (Tensor, Tensor) {
        assert!(supports(&[gate, up, g]) && gate.size() == up.size() && gate.size() == g.size());
        let (a, b) = (gate.empty_like(), gate.empty_like());
        let (h, [pg, pu, pd, pa, pb]) = (is_bf16(gate), [gate, up, g, &a, &b].map(BufferPtr::of));
        // SAFETY: elements [b, e) of buffers of one size.
        parallel(g.numel() as i64, 4, |b, e| unsafe {
            (self.swiglu_backward)(h, pg.any(), pu.any(), pd.any(), pa.any(), pb.any(), b, e)
        });
        (a, b)
    }

    /// Rotates x (T, H, E) by the angles with cos and sin (T, 1, E/2). `turn` is 1, or -1 to rotate back.
    pub fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor, turn: f32) -> Tensor {
        let size = x.size();
        let (t, heads, e) = (size[0], size[1], size[2]);
        assert!(supports(&[x, cos, sin]) && [cos, sin].iter().all(|c| c.numel() as i64 == t * (e / 2)) && e % 2 == 0);
        let y = x.empty_like();
        let (h, [px, pc, ps, py]) = (is_bf16(x), [x, cos, sin, &y].map(BufferPtr::of));
        // SAFETY: tokens [b, e) of buffers of t tokens.
        parallel(t, heads * e, |begin, end| unsafe {
            (self.rotate)(h, px.any(), pc.any(), ps.any(), py.any(), heads, e, turn, begin, end)
        });
        y
    }

    /// Returns, from logits (N, V): the log-probability (N) of each target in softmax(logits / T); 1 (N) if the
    /// target is the first of the largest logits, otherwise 0; and, if `entropy` is true, the distribution's entropy
    /// (N). With `direction` the logits are overwritten by the gradient of the log-probability, (onehot(target) -
    /// softmax) / T.
    pub fn head(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        temperature: f64,
        entropy: bool,
        direction: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        let (n, v) = (row_count(logits), row_width(logits));
        assert!(supports(&[logits]) && targets.kind() == Kind::Int64 && targets.numel() as i64 == n);
        let targets = targets.contiguous();
        assert!(n == 0 || (targets.min().int64_value(&[]) >= 0 && targets.max().int64_value(&[]) < v));
        let (log_probs, hits, entropy) = (floats(n), floats(n), entropy.then(|| floats(n)));
        let (h, [pz, pt, pl, ph]) = (is_bf16(logits), [logits, &targets, &log_probs, &hits].map(BufferPtr::of));
        let (pe, inverse) = (entropy.as_ref().map(BufferPtr::of), (1.0 / temperature) as f32);
        // SAFETY: rows [b, e) of buffers of n rows; every target is a column.
        parallel(n, v, |b, e| unsafe {
            let pe = pe.as_ref().map_or(std::ptr::null_mut(), BufferPtr::f32);
            (self.head)(h, pz.any(), pt.i64(), pl.f32(), ph.f32(), pe, v, inverse, direction, b, e)
        });
        (log_probs, hits, entropy)
    }

    /// Overwrites scores (…, L) by causal probabilities, exp(scale * s - lse). The query of row i has position i % L;
    /// later keys get 0.
    pub fn probabilities(&self, scores: &Tensor, lse: &Tensor, scale: f64) {
        let (n, l) = (row_count(scores), row_width(scores));
        assert!(supports(&[scores]) && supports(&[lse]) && lse.kind() == Kind::Float && lse.numel() as i64 == n);
        let (h, [ps, pl]) = (is_bf16(scores), [scores, lse].map(BufferPtr::of));
        // SAFETY: rows [b, e) of buffers of n rows.
        parallel(n, l, |b, e| unsafe { (self.probabilities)(h, ps.any(), pl.f32(), l, scale as f32, b, e) });
    }

    /// Overwrites the gradient `gp` of the probabilities `p` (…, L) by the gradient of the scores. `y` (…, E) is the
    /// attention's result and `gy` its gradient.
    pub fn score_gradient(&self, gp: &Tensor, p: &Tensor, gy: &Tensor, y: &Tensor, scale: f64) {
        let (n, l, e) = (row_count(gp), row_width(gp), row_width(y));
        assert!(supports(&[gp, p, gy, y]) && p.size() == gp.size() && row_count(y) == n && gy.size() == y.size());
        let (h, [pg, pp, pd, py]) = (is_bf16(gp), [gp, p, gy, y].map(BufferPtr::of));
        // SAFETY: rows [b, e) of buffers of n rows.
        parallel(n, l, |begin, end| unsafe {
            (self.score_gradient)(h, pg.any(), pp.any(), pd.any(), py.any(), l, e, scale as f32, begin, end)
        });
    }
}
