//! Gradients of low-rank factors: products over all tokens with a narrow matrix, several in one launch.

use super::kernels::{Kernel, Kernels, blocks, pointer};
use super::module::Argument;
use std::ffi::c_void;
use std::sync::PoisonError;
use tch::{Device, Kind, Tensor};

/// kProducts in native/cuda/low_rank.cu.
const PRODUCTS: usize = 16;

/// kStrip, kGroup and kTile there: the columns of a wide and of a narrow matrix that a block computes, and their product.
const STRIP: i64 = 256;
const GROUP: i64 = 8;
const TILE: i64 = STRIP * GROUP;

/// Blocks that a product has at least, if there are tokens for them: the products of a layer are a dozen, and large GPUs run some
/// hundreds of blocks at the same time. The number must depend on nothing but the product, so that its sums have the same bits
/// whatever else is computed by the launch.
const BLOCKS: i64 = 64;

/// Tokens that a block computes at least.
const FEWEST_TOKENS: i64 = 64;

/// Returns how many chunks the tokens of a product of m and r columns are divided into, and the tokens of each.
fn chunks(tokens: i64, [columns, ranks]: [i64; 2]) -> (i64, i64) {
    let most = blocks(BLOCKS, tiles([columns, ranks])).clamp(1, blocks(tokens, FEWEST_TOKENS));
    let each = blocks(tokens, most);
    (blocks(tokens, each), each)
}

fn tiles([columns, ranks]: [i64; 2]) -> i64 {
    blocks(columns, STRIP) * blocks(ranks, GROUP)
}

/// Returns the bytes that a launch takes for sums of chunks, given the tokens and the columns m and r of each product.
pub fn factor_product_bytes(tokens: i64, products: &[[i64; 2]]) -> u64 {
    let of_product = |sizes: &[i64; 2]| tiles(*sizes) * chunks(tokens, *sizes).0 * TILE * 4;
    products.iter().map(of_product).sum::<i64>() as u64
}

/// A product `scale wide^T narrow` over the rows of two matrices whose rows are contiguous.
#[derive(Clone, Copy)]
pub struct FactorProduct<'a> {
    /// (T, m)
    pub wide: &'a Tensor,
    /// (T, r) with small r
    pub narrow: &'a Tensor,
    /// The factor on the result.
    pub scale: f64,
    /// True: the result is `narrow^T wide` (r, m).
    pub transposed: bool,
}

impl FactorProduct<'_> {
    /// Returns m and r.
    fn sizes(&self) -> [i64; 2] {
        [self.wide.size()[1], self.narrow.size()[1]]
    }

    /// Returns the number of multiplications.
    pub fn multiplications(&self) -> i64 {
        self.wide.size()[0] * self.sizes().iter().product::<i64>()
    }
}

/// Has the layout of `FactorProducts` in native/cuda/low_rank.cu.
#[repr(C)]
struct Table {
    wide: [*const c_void; PRODUCTS],
    narrow: [*const c_void; PRODUCTS],
    to: [*mut c_void; PRODUCTS],
    wide_stride: [i64; PRODUCTS],
    narrow_stride: [i64; PRODUCTS],
    column_step: [i64; PRODUCTS],
    rank_step: [i64; PRODUCTS],
    tokens: i64,
    columns: [i32; PRODUCTS],
    ranks: [i32; PRODUCTS],
    chunks: [i32; PRODUCTS],
    chunk_tokens: [i32; PRODUCTS],
    end: [i32; PRODUCTS],
    packed: [i32; PRODUCTS],
    scale: [f32; PRODUCTS],
    count: i32,
}

impl Kernels {
    /// Returns true if `factor_products` takes this matrix (T, n): its rows are contiguous.
    pub fn takes_rows(&self, t: &Tensor) -> bool {
        t.kind() == self.kind && t.dim() == 2 && t.numel() > 0 && (t.stride()[1] == 1 || t.size()[1] == 1)
    }

    /// Computes products over the same number of rows: (m, r) or transposed (r, m) each, in float32. On the device, launches
    /// that call this must follow each other on one stream.
    pub fn factor_products(&self, products: &[FactorProduct]) -> Vec<Tensor> {
        products.chunks(PRODUCTS).flat_map(|part| self.some_products(part)).collect()
    }

    fn some_products(&self, products: &[FactorProduct]) -> Vec<Tensor> {
        let (tokens, device) = (products[0].wide.size()[0], products[0].wide.device());
        let mut table = Table {
            wide: [std::ptr::null(); PRODUCTS],
            narrow: [std::ptr::null(); PRODUCTS],
            to: [std::ptr::null_mut(); PRODUCTS],
            wide_stride: [0; PRODUCTS],
            narrow_stride: [0; PRODUCTS],
            column_step: [0; PRODUCTS],
            rank_step: [0; PRODUCTS],
            tokens,
            columns: [0; PRODUCTS],
            ranks: [0; PRODUCTS],
            chunks: [0; PRODUCTS],
            chunk_tokens: [0; PRODUCTS],
            end: [0; PRODUCTS],
            packed: [0; PRODUCTS],
            scale: [0.0; PRODUCTS],
            count: products.len() as i32,
        };
        let (mut end, mut results) = (0, Vec::with_capacity(products.len()));
        for (i, product) in products.iter().enumerate() {
            let FactorProduct { wide, narrow, scale, transposed } = product;
            let [columns, ranks] = product.sizes();
            for t in [wide, narrow] {
                assert!(self.takes_rows(t) && t.size()[0] == tokens && t.device() == device, "matrices of one length");
            }
            let size = if *transposed { [ranks, columns] } else { [columns, ranks] };
            let to = Tensor::empty(size, (Kind::Float, device));
            let strides = [wide, narrow].map(|t| t.stride()[0]);
            let (chunks, each) = chunks(tokens, [columns, ranks]);
            end += tiles([columns, ranks]) * chunks;
            (table.wide[i], table.narrow[i], table.to[i]) = (wide.data_ptr(), narrow.data_ptr(), to.data_ptr());
            [table.wide_stride[i], table.narrow_stride[i]] = strides;
            (table.column_step[i], table.rank_step[i]) = if *transposed { (1, columns) } else { (ranks, 1) };
            (table.columns[i], table.ranks[i], table.end[i]) = (columns as i32, ranks as i32, end as i32);
            (table.chunks[i], table.chunk_tokens[i]) = (chunks as i32, each as i32);
            table.packed[i] = self.in_packs(&[wide, narrow], columns | ranks | strides[0] | strides[1]).into();
            table.scale[i] = *scale as f32;
            results.push(to);
        }
        let parts = Tensor::empty([end, TILE], (Kind::Float, device));
        let arguments = [Argument::Struct(&table), pointer(&parts), pointer(&self.tickets(end, device))];
        self.module.launch(Kernel::FactorGradients, end, device, &arguments);
        results
    }

    /// Returns at least `count` counters, all zero.
    fn tickets(&self, count: i64, device: Device) -> Tensor {
        let mut kept = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = kept.iter().find(|t| t.numel() as i64 >= count && t.device() == device);
        if let Some(enough) = enough {
            return enough.shallow_clone();
        }
        // Those that are too few stay, because launches that were recorded use them.
        let fresh = Tensor::zeros([count.max(4096)], (Kind::Int, device));
        kept.push(fresh.shallow_clone());
        fresh
    }
}
