//! The kernels as operations on tensors: checks what each relies on, and knows its arguments.

use super::compiler::number_format;
use super::module::{Argument, Module};
use super::norm::row_stride;
use std::ffi::CStr;
use std::sync::Mutex;
use tch::{Kind, Tensor};

/// Declares the kernels: name in native/cuda/, and threads of a block.
macro_rules! kernels {
    ($($kernel:ident = $name:literal x $threads:literal,)*) => {
        /// A kernel of native/cuda/.
        #[derive(Debug, Clone, Copy)]
        pub(super) enum Kernel { $($kernel,)* }

        impl Kernel {
            /// All kernels, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$kernel,)*];

            /// Returns the kernel's name in the source.
            pub fn name(self) -> &'static CStr {
                match self { $(Self::$kernel => $name,)* }
            }

            /// Returns the number of threads of a block.
            pub fn threads(self) -> u32 {
                match self { $(Self::$kernel => $threads,)* }
            }
        }
    };
}

kernels! {
    Swiglu = c"swiglu" x 256,
    SwigluBackward = c"swiglu_backward" x 256,
    Rotate = c"rotate" x 256,
    RmsNorm = c"rms_norm" x 256,
    RmsNormBackward = c"rms_norm_backward" x 256,
    RmsNormWeight = c"rms_norm_weight" x 256,
    Head = c"head" x 1024,
    DequantiseNf4 = c"dequantise_nf4" x 256,
    RoundRows = c"round_rows" x 256,
    NarrowAll = c"narrow_all" x 256,
    WidenAll = c"widen_all" x 256,
    FactorGradients = c"factor_gradients" x 128,
}

/// Numbers of a 4-bit weight that share a scale.
pub const NF4_BLOCK: i64 = 64;

/// kPack in native/cuda/language.h.
const PACK: i64 = 8;

/// kCasts in native/cuda/adapter.cu.
const CASTS: usize = 64;

/// kCastNumbers in native/cuda/adapter.cu.
const CAST_NUMBERS: i64 = 1024;

/// The kernels of one device for tensors of one dtype. Results are computed on the current stream of the tensors'
/// device. Arguments must be contiguous and on that device; tensors whose dtype is not said have that of the kernels.
pub struct Kernels {
    pub(super) module: Module,
    pub(super) kind: Kind,
    /// Counters, int32, all zero between launches. Launches that use them follow each other on one stream.
    pub(super) tickets: Mutex<Vec<Tensor>>,
}

/// Has the layout of `Casts` in native/cuda/adapter.cu.
#[repr(C)]
struct Casts {
    from: [*const std::ffi::c_void; CASTS],
    to: [*mut std::ffi::c_void; CASTS],
    size: [i64; CASTS],
    end: [i64; CASTS],
    from_width: [i32; CASTS],
    to_width: [i32; CASTS],
    shift: [i32; CASTS],
    scale: [f32; CASTS],
    count: i32,
}

/// A cast of a matrix, into another with the same number of rows.
pub struct Cast<'a> {
    /// The source, contiguous.
    pub from: &'a Tensor,
    /// The result, contiguous.
    pub to: &'a Tensor,
    /// The factor on every number.
    pub factor: f64,
    /// The column of the result that the source's first column becomes; negative: the first `-column` columns of the
    /// source are left out. Columns of the result that the source does not have are zero.
    pub column: i64,
}

/// Rows of numbers at equal distances.
#[derive(PartialEq)]
struct Rows {
    width: i64,
    stride: i64,
}

impl Rows {
    /// Returns the layout of a tensor: one row if it is contiguous, otherwise those of a matrix. `None` for others.
    fn of(t: &Tensor) -> Option<Self> {
        if t.is_contiguous() {
            let n = t.numel() as i64;
            return Some(Self { width: n, stride: n });
        }
        let (size, stride) = (t.size(), t.stride());
        let rows = size.len() == 2 && stride[1] == 1 && stride[0] >= size[1];
        rows.then(|| Self { width: size[1], stride: stride[0] })
    }

    /// Returns the layout that two tensors of one size share.
    fn shared(a: &Tensor, b: &Tensor) -> Option<Self> {
        Self::of(a).filter(|rows| a.size() == b.size() && Self::of(b).as_ref() == Some(rows))
    }
}

pub(super) fn pointer(t: &Tensor) -> Argument<'static> {
    Argument::Pointer(t.data_ptr())
}

pub(super) fn pointer_or_null(t: Option<&Tensor>) -> Argument<'static> {
    Argument::Pointer(t.map_or(std::ptr::null_mut(), Tensor::data_ptr))
}

pub(super) fn last(t: &Tensor) -> i64 {
    t.size().last().copied().unwrap_or(1)
}

impl Kernels {
    pub(super) fn new(module: Module, kind: Kind) -> Self {
        assert!(number_format(kind).is_some());
        Self { module, kind, tickets: Mutex::new(Vec::new()) }
    }

    /// Panics unless the tensors are contiguous, of the kernels' dtype and of one size.
    pub(super) fn check(&self, tensors: &[&Tensor]) {
        let size = tensors[0].size();
        for t in tensors {
            assert!(t.kind() == self.kind && t.is_contiguous() && t.size() == size, "tensors of one kind and size");
        }
    }

    /// Returns 1 if packs of numbers can be read at every tensor's address, and rows of `width` numbers are whole
    /// packs; otherwise 0.
    pub(super) fn packed(&self, tensors: &[&Tensor], width: i64) -> Argument<'static> {
        Argument::Int(self.in_packs(tensors, width).into())
    }

    /// Returns true if packs of numbers can be read at every tensor's address, and rows of `width` numbers are whole packs.
    pub(super) fn in_packs(&self, tensors: &[&Tensor], width: i64) -> bool {
        let bytes = (PACK as usize * self.kind.elt_size_in_bytes()).min(16);
        let aligned = tensors.iter().all(|t| t.data_ptr() as usize % bytes == 0);
        aligned && width % PACK == 0
    }

    /// Returns true if `swiglu` takes these tensors: both contiguous, or columns of wider matrices of one width.
    pub fn takes_pair(&self, gate: &Tensor, up: &Tensor) -> bool {
        let same = |t: &Tensor| t.kind() == self.kind && t.device() == gate.device() && t.numel() > 0;
        same(gate) && same(up) && Rows::shared(gate, up).is_some()
    }

    /// Computes silu(gate) up, elementwise, contiguous.
    pub fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        assert!(self.takes_pair(gate, up));
        let (y, n) = (Tensor::empty(gate.size(), (self.kind, gate.device())), gate.numel() as i64);
        let Rows { width, stride } = Rows::shared(gate, up).expect("checked above");
        let arguments = [
            pointer(gate),
            pointer(up),
            pointer(&y),
            Argument::Long(n),
            Argument::Long(width),
            Argument::Long(stride),
            self.packed(&[gate, up, &y], if stride == width { PACK } else { width | stride }),
        ];
        self.module.launch(Kernel::Swiglu, blocks(n, 256 * PACK), gate.device(), &arguments);
        y
    }

    /// Returns the gradients of gate and up, given the gradient `g` of `swiglu`. They lie side by side: for gate and up
    /// of (T, F), as the halves of a matrix (T, 2F). If gate and up are such halves of wider rows, the gradients' are as wide.
    pub fn swiglu_backward(&self, gate: &Tensor, up: &Tensor, g: &Tensor) -> (Tensor, Tensor) {
        assert!(self.takes_pair(gate, up) && g.size() == gate.size());
        self.check(&[g]);
        let (n, columns) = (g.numel() as i64, last(g));
        let Rows { width, stride } = Rows::shared(gate, up).expect("checked above");
        // If the inputs are contiguous, their rows are those of the results.
        let (width, stride) = if stride == width { (columns, columns) } else { (width, stride) };
        let halves =
            up.data_ptr() as usize == gate.data_ptr() as usize + columns as usize * g.kind().elt_size_in_bytes();
        let row = if halves { stride.max(2 * columns) } else { 2 * columns };
        let both = Tensor::empty([n / columns, row], (self.kind, g.device()));
        let (g_gate, g_up) = (both.narrow(1, 0, columns), both.narrow(1, columns, columns));
        let all = [gate, up, g, &g_gate, &g_up];
        let rest = [n, width, stride, row].map(Argument::Long);
        let packed = self.packed(&all, width | stride | row);
        let arguments: Vec<Argument> = all.into_iter().map(pointer).chain(rest).chain([packed]).collect();
        self.module.launch(Kernel::SwigluBackward, blocks(n, 256 * PACK), gate.device(), &arguments);
        (g_gate.reshape(g.size()), g_up.reshape(g.size()))
    }

    /// Rotates q (T, H, E) and k (T, K, E) by the angles with cos and sin (T, 1, E/2). `turn` is 1, or -1 to rotate
    /// back.
    pub fn rotate(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor, turn: f32) -> (Tensor, Tensor) {
        let (y_q, y_k) = (q.empty_like(), k.empty_like());
        self.rotate_into([q, k], [&y_q, &y_k], cos, sin, turn);
        (y_q, y_k)
    }

    /// Does the same in place. Tokens of q and k may be parts of wider rows.
    pub fn rotate_in_place(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor, turn: f32) {
        self.rotate_into([q, k], [q, k], cos, sin, turn);
    }

    /// Does the same to q (T, H, E) and k (T, K, E), and copies v (T, K, E): the results are columns of one matrix, q, k and v
    /// side by side, whose rows begin `row` numbers apart, or follow each other if they have more numbers.
    pub fn rotate_beside(&self, parts: [&Tensor; 3], cos: &Tensor, sin: &Tensor, turn: f32, row: i64) -> [Tensor; 3] {
        let [tokens, heads, size] = parts[0].size()[..] else { panic!("queries of tokens, heads and numbers") };
        let kv = parts[1].size()[1];
        let row = row.max((heads + 2 * kv) * size);
        let all = Tensor::empty([tokens, row], (self.kind, parts[0].device()));
        let columns = |first: i64, count: i64| all.narrow(1, first * size, count * size).view([tokens, count, size]);
        let to = [columns(0, heads), columns(heads, kv), columns(heads + kv, kv)];
        self.rotate_into(parts, to.each_ref(), cos, sin, turn);
        to
    }

    /// Rotates q and k, and copies v if there is one. The numbers of a token follow each other.
    fn rotate_into<const N: usize>(&self, from: [&Tensor; N], to: [&Tensor; N], cos: &Tensor, sin: &Tensor, turn: f32) {
        let (size, kv) = (from[0].size(), from[1].size()[1]);
        let (tokens, half) = (size[0], size[2] / 2);
        assert!(size[2] % 2 == 0 && cos.numel() as i64 == tokens * half);
        self.check(&[cos, sin]);
        let strides = [from, to].map(|side| {
            let of_each = side.iter().enumerate().map(|(i, t)| {
                let stride = t.stride();
                assert!(t.kind() == self.kind && t.size() == [tokens, if i == 0 { size[1] } else { kv }, size[2]]);
                assert!(stride[2] == 1 && (stride[1] == size[2] || t.size()[1] == 1));
                stride[0]
            });
            of_each.collect::<Vec<_>>()
        });
        let addresses = |side: [&Tensor; N]| std::array::from_fn::<_, 3, _>(|i| pointer_or_null(side.get(i).copied()));
        let all: Vec<&Tensor> = from.into_iter().chain(to).chain([cos, sin]).collect();
        let packed = self.packed(&all, strides.iter().flatten().fold(half, |sum, stride| sum | stride));
        let strides = strides.iter().flat_map(|side| (0..3).map(|i| Argument::Long(side.get(i).copied().unwrap_or(0))));
        let shape = [size[1], kv, half].map(|n| Argument::Int(n as i32));
        let arguments: Vec<Argument> = addresses(from)
            .into_iter()
            .chain(addresses(to))
            .chain([pointer(cos), pointer(sin)])
            .chain(strides)
            .chain(shape)
            .chain([Argument::Float(turn), packed])
            .collect();
        self.module.launch(Kernel::Rotate, tokens, from[0].device(), &arguments);
    }

    /// Returns what [`kernels::Kernels::head`](crate::native::kernels::Kernels::head) does, on the device, in float32.
    /// Targets are int64; the log-probability of one that is no column is NaN.
    pub fn head(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        temperature: f64,
        entropy: bool,
        direction: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        self.check(&[logits]);
        let size = logits.size();
        let targets = targets.contiguous();
        assert!(targets.kind() == Kind::Int64 && targets.size() == size[..1] && targets.device() == logits.device());
        let floats = || Tensor::empty([size[0]], (Kind::Float, logits.device()));
        let (log_probs, hits, entropy) = (floats(), floats(), entropy.then(floats));
        let arguments = [
            pointer(logits),
            pointer(&targets),
            pointer(&log_probs),
            pointer(&hits),
            pointer_or_null(entropy.as_ref()),
            Argument::Long(size[1]),
            Argument::Float((1.0 / temperature) as f32),
            Argument::Int(direction.into()),
            self.packed(&[logits], size[1]),
        ];
        self.module.launch(Kernel::Head, size[0], logits.device(), &arguments);
        (log_probs, hits, entropy)
    }

    /// Returns the numbers (n) of a 4-bit weight in NF4: `codes` (n / 2) bytes, of which the upper half comes first;
    /// `scales` (ceil(n / 64)) float32, the largest magnitude of each block.
    pub fn dequantise_nf4(&self, codes: &Tensor, scales: &Tensor) -> Tensor {
        let n = 2 * codes.numel() as i64;
        assert!(codes.kind() == Kind::Uint8 && codes.is_contiguous() && scales.is_contiguous());
        assert!(scales.kind() == Kind::Float && scales.numel() as i64 == blocks(n, NF4_BLOCK));
        let y = Tensor::empty([n], (self.kind, codes.device()));
        let arguments = [
            pointer(codes),
            pointer(scales),
            pointer(&y),
            Argument::Long(n),
            Argument::Int(NF4_BLOCK as i32),
            self.packed(&[&y], PACK),
        ];
        self.module.launch(Kernel::DequantiseNf4, blocks(n, 256 * PACK), codes.device(), &arguments);
        y
    }

    /// Rounds the rows of x (T, D), at equal distances, to FP8: codes (T, D) float8_e4m3fn, and scales (T) float32, powers of two such that the
    /// largest magnitude of a row is from 128 to below 256 times its scale, or less if it is below 2^-100. A row with NaN or infinite numbers
    /// has the code of NaN for these.
    pub fn round_rows(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (width, stride) = (last(x), row_stride(x).expect("rows at equal distances"));
        assert!(x.kind() == self.kind && x.dim() == 2);
        let codes = Tensor::empty(x.size(), (Kind::Float8e4m3fn, x.device()));
        let scales = Tensor::empty([x.size()[0]], (Kind::Float, x.device()));
        let arguments = [
            pointer(x),
            pointer(&codes),
            pointer(&scales),
            Argument::Long(width),
            Argument::Long(stride),
            self.packed(&[x], width | stride),
        ];
        self.module.launch(Kernel::RoundRows, x.size()[0], x.device(), &arguments);
        (codes, scales)
    }

    /// Casts float32 matrices to the kernels' dtype.
    pub fn narrow_all(&self, casts: &[Cast]) {
        self.cast_all(Kernel::NarrowAll, Kind::Float, self.kind, casts);
    }

    /// Casts matrices of the kernels' dtype to float32.
    pub fn widen_all(&self, casts: &[Cast]) {
        self.cast_all(Kernel::WidenAll, self.kind, Kind::Float, casts);
    }

    fn cast_all(&self, kernel: Kernel, from: Kind, to: Kind, casts: &[Cast]) {
        for part in casts.chunks(CASTS) {
            let mut table = Casts {
                from: [std::ptr::null(); CASTS],
                to: [std::ptr::null_mut(); CASTS],
                size: [0; CASTS],
                end: [0; CASTS],
                from_width: [0; CASTS],
                to_width: [0; CASTS],
                shift: [0; CASTS],
                scale: [0.0; CASTS],
                count: part.len() as i32,
            };
            let mut end = 0;
            for (i, cast) in part.iter().enumerate() {
                let (a, b, size) = (cast.from, cast.to, cast.to.numel() as i64);
                assert!(a.kind() == from && b.kind() == to && a.is_contiguous() && b.is_contiguous());
                assert_eq!(a.numel() as i64 * last(b), size * last(a), "matrices with the same number of rows");
                end += blocks(size, CAST_NUMBERS);
                (table.from[i], table.to[i], table.size[i], table.end[i]) = (a.data_ptr(), b.data_ptr(), size, end);
                (table.from_width[i], table.to_width[i]) = (last(a) as i32, last(b) as i32);
                (table.shift[i], table.scale[i]) = (cast.column as i32, cast.factor as f32);
            }
            self.module.launch(kernel, end, part[0].from.device(), &[Argument::Struct(&table)]);
        }
    }
}

/// Returns the number of blocks for `n` numbers, `each` of them per block.
pub(super) fn blocks(n: i64, each: i64) -> i64 {
    (n + each - 1) / each
}
