//! Predicts the memory of the output head, and with it the peak of a step's activations.

use super::{RunShape, TrainedBytes};
use crate::native;
use crate::nn::quantised::{self, fits_fp8_products, has_fp8_products};
use crate::nn::{LayerKind, Param, QuantisedFormat, QuantisedParam, chunked};
use tch::{Device, Kind};

impl RunShape<'_> {
    /// Returns true if our own CUDA kernels compute what they can.
    pub(super) fn has_own_kernels(&self) -> bool {
        native::cuda::kernels(self.prepared.device, self.model.kind()).is_some()
    }

    /// Returns the bytes that a head takes for each logit of a chunk.
    fn logit_bytes(&self) -> u64 {
        match self.width() {
            // Log-probabilities, and the gradients of logits and of these, in float32; the logits; and what changes these.
            _ if !self.model.has_plain_head() => 16,
            // Our own loop or kernel turns logits into their gradient in place.
            width if self.prepared.device == Device::Cpu || self.has_own_kernels() => width,
            // The logits and log-probabilities in float32, and where the head computes in half precision its logits.
            4 => 8,
            width => width + 8,
        }
    }

    /// Returns the bytes of the output head's largest temporary tensors.
    fn head(&self) -> u64 {
        let ([d, _, v], width) = (self.sizes(), self.width());
        let chunk = match self.parts.tables {
            0 => self.supervised.min(256) * v * self.logit_bytes(),
            tables => self.supervised.min(chunked::CHUNK as u64) * v * 4 * tables,
        };
        // A weight held in a narrower format is widened while it is multiplied. The head is the largest such temporary. Of a
        // quantised head it is a part, whose logits are copied to those of the chunk if it is not all. A GPU dequantises it in
        // float32 first.
        let (stored, _) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let dequantised = if self.prepared.device != Device::Cpu && width < 4 { 4 + width } else { width };
        let widened = match self.head_is_quantised() {
            true if tile(d * v) < d * v => {
                tile(d * v) * dequantised + self.supervised.min(256) * tile(d * v) / d * width
            }
            true => d * v * dequantised,
            false if stored != self.model.kind() && !self.full() => d * v * width,
            false => 0,
        };
        chunk + self.supervised * d * width * 2 + widened
    }

    /// Returns true for a parameter that is quantised in the run, in its file or when it is loaded.
    pub(super) fn is_quantised(&self, p: &Param) -> bool {
        let loaded = self.prepared.storage.quantisation();
        match p.quantised {
            QuantisedParam::Never => false,
            QuantisedParam::Possible => loaded.is_some(),
            QuantisedParam::PossibleTable => loaded.is_some_and(|format| format.embeddings.is_some()),
            QuantisedParam::Done(_) => true,
        }
    }

    /// Returns the bytes of the largest temporary that the product with a layer's quantised weight takes.
    fn temporary_of_products(&self) -> u64 {
        let of_layer = |p: &&Param| !matches!(p.layer, LayerKind::Embedding | LayerKind::Table | LayerKind::Head);
        let quantised = self.model.params().base().filter(of_layer).filter(|p| self.is_quantised(p));
        let format = self.prepared.storage.quantisation().map(|all| all.linear.format);
        // A GPU dequantises formats of 8 bits in float32 first.
        let eight_bits = matches!(format, Some(QuantisedFormat::Int8 | QuantisedFormat::Fp8));
        let in_float32 = eight_bits && self.prepared.device != Device::Cpu && self.width() < 4;
        let dequantised = self.width() + if in_float32 { 4 } else { 0 };
        let in_fp8 = format == Some(QuantisedFormat::Fp8) && self.width() < 4 && has_fp8_products(self.prepared.device);
        let of_weight = |p: &Param| match p.tensor.size()[..] {
            [a, b] if in_fp8 && fits_fp8_products([a, b]) => self.fp8_operands([a as u64, b as u64]),
            _ => tile(p.count()) * dequantised,
        };
        quantised.map(of_weight).max().unwrap_or(0)
    }

    /// Returns the bytes that the backward of a product in FP8 takes beside its results, for a weight with these sides: the transposed codes,
    /// the gradient's, and the product before it is added to that of another layer of the same input.
    fn fp8_operands(&self, [a, b]: [u64; 2]) -> u64 {
        // Without our own kernel, the rows are divided by their scales first.
        let divided = match self.model.kind() {
            _ if self.has_own_kernels() => 0,
            Kind::BFloat16 => 2,
            _ => 8,
        };
        a * b + self.layer_rows() * a.max(b) * (1 + divided).max(self.width())
    }

    /// Returns true if the weight of the output head is quantised.
    fn head_is_quantised(&self) -> bool {
        let head = self.model.params().base().find(|p| self.is_head(p));
        head.is_some_and(|p| self.is_quantised(p))
    }

    /// Returns true for the weight of the output head, which may be that of the embedding.
    pub(super) fn is_head(&self, p: &Param) -> bool {
        p.layer == LayerKind::Head || self.model.config().tie_word_embeddings && p.layer == LayerKind::Embedding
    }

    pub(super) fn activations(&self, trained: &TrainedBytes) -> u64 {
        let ([d, _, v], width) = (self.sizes(), self.width());
        let (kept, head) = (self.kept(), self.head());
        if self.trains_head() {
            // In full fine-tuning the memory of activations is released while gradients are allocated, so only the
            // excess over the gradients counts. The first gradient is the head's, together with a narrow copy of its
            // weight and on the CPU one chunk's part of the gradient; the last is the embedding's, on the CPU in two
            // formats.
            let (first, last) = match self.prepared.device {
                Device::Cpu => (d * v * (4 + 2 * width), d * v * (4 + width)),
                _ => (d * v * (4 + if width == 4 { 0 } else { width }), d * v * 4),
            };
            // The last layer's backward, while the head's gradient is the only one, takes more in recurrent models, and in
            // those with a small vocabulary.
            let recurrent = self.model.recurrence().is_some();
            let layer = match self.prepared.device {
                Device::Cpu if !recurrent => 0,
                _ => self.backward_of_layer() + d * v * 4,
            };
            return (kept + (head + first).max(layer)).saturating_sub(trained.gradients).max(last);
        }
        let backward = self.backward_of_layer() + 4 * self.module_memory().temporary + self.temporary_of_products();
        kept + head.max(backward)
    }
}

/// Returns how many of a quantised weight's numbers are dequantised at a time.
fn tile(numbers: u64) -> u64 {
    numbers.min(quantised::TILE as u64)
}
