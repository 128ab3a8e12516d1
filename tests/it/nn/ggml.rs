//! Weights in ggml's blocks in layers: products and gradients, rows of tables, output heads, and what is refused.

use crate::support::device;
use crate::support::ggml::{TYPES, numbers, plain_blocks, random_blocks, same_bits, unaligned};
use ft::adapters::targets::Targets;
use ft::adapters::{LoraSpec, ModulePlan};
use ft::error::Result;
use ft::gguf::quant::GgmlType;
use ft::native;
use ft::nn::linear::Linear;
use ft::nn::{
    AdapterPlan, DecodingGuard, Embedding, ModelBuilder, QuantisedEntry, QuantisedWeight, Weight, WeightSource,
    Weights, chunked, head, weights,
};
use half::f16;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A matrix that a checkpoint contains in blocks.
struct Stored {
    kind: GgmlType,
    shape: [i64; 2],
    bytes: Vec<u8>,
}

impl QuantisedEntry for Stored {
    fn shape(&self) -> [i64; 2] {
        self.shape
    }

    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, device: Device) -> Result<QuantisedWeight> {
        QuantisedWeight::of_ggml_blocks(self.kind, self.shape, &unaligned(&self.bytes).to_device(device))
    }
}

fn weight(kind: GgmlType, shape: [i64; 2], bytes: &[u8]) -> QuantisedWeight {
    QuantisedWeight::of_ggml_blocks(kind, shape, &unaligned(bytes).to_device(device())).unwrap()
}

#[test]
fn numbers_rows_and_sizes() {
    for kind in TYPES {
        let shape = [11, 2 * kind.block_elements() as i64];
        let bytes = random_blocks(kind, shape, 51);
        let (found, expected) = (weight(kind, shape, &bytes), numbers(kind, shape, &bytes));
        assert_eq!((found.shape(), found.count(), found.bytes()), (shape, 11 * shape[1] as u64, bytes.len() as u64));
        assert_eq!((found.describe(), found.format()), (kind.name(), None));
        for dtype in [Kind::Float, Kind::BFloat16] {
            assert!(
                same_bits(&found.dense(dtype).to_device(Device::Cpu), &expected.to_kind(dtype)),
                "{kind:?} {dtype:?}"
            );
        }
        // Rows are selected without being dequantised: any order, some twice.
        let order = Tensor::from_slice(&[10i64, 0, 0, 7]);
        let some = found.select_rows(&order.to_device(device())).unwrap();
        assert_eq!((some.shape(), some.bytes()), ([4, shape[1]], bytes.len() as u64 * 4 / 11), "{kind:?}");
        let picked = expected.index_select(0, &order);
        assert!(same_bits(&some.dense(Kind::Float).to_device(Device::Cpu), &picked), "{kind:?}");
    }
}

/// Forward, backward and gradients of layers that are a single tile, and of one of several tiles.
#[test]
fn products_are_those_of_the_dequantised_weight() {
    tch::manual_seed(52);
    let options = (Kind::Float, device());
    let small = TYPES.map(|kind| (kind, [33, kind.block_elements() as i64]));
    for (kind, shape) in small.into_iter().chain([(GgmlType::Q4_0, [130, (1 << 17) + 32])]) {
        let quantised = Weight::Quantised(weight(kind, shape, &plain_blocks(kind, shape, 52)));
        let dense = Weight::Dense(quantised.dense(Kind::Float));
        let (x, bias) = (Tensor::randn([3, shape[1]], options), Tensor::randn([shape[0]], options));
        let run = |weight: &Weight| {
            let (x, bias) = (x.copy().set_requires_grad(true), bias.copy().set_requires_grad(true));
            let y = weight.product(&x, Some(&bias));
            (&y * &y).sum(Kind::Float).backward();
            [y.detach(), x.grad(), bias.grad(), weight.product_back(&y.detach(), Some(x.detach().copy()))]
        };
        for (i, (found, expected)) in run(&quantised).iter().zip(run(&dense)).enumerate() {
            let gap = ((found - &expected).abs().max() / expected.abs().max()).double_value(&[]);
            assert!(gap < 2e-6, "{kind:?} {shape:?}, result {i}: {gap}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |kind: GgmlType, shape: [i64; 2], bytes: &[u8]| {
        QuantisedWeight::of_ggml_blocks(kind, shape, &Tensor::from_slice(bytes)).unwrap_err().to_string()
    };
    for kind in TYPES {
        let elements = kind.block_elements() as i64;
        let shape = [3, 2 * elements];
        let bytes = random_blocks(kind, shape, 53);
        let said = refused(kind, [3, 2 * elements - 1], &bytes);
        assert!(
            said.contains(&format!("rows of {} numbers", 2 * elements - 1)) && said.contains(&kind.name()),
            "{said}"
        );
        for (shape, bytes) in [(shape, &bytes[1..]), ([4, 2 * elements], &bytes[..]), ([0, 2 * elements], &bytes[..])] {
            let said = refused(kind, shape, bytes);
            assert!(said.contains(&format!("{} bytes found", bytes.len())), "{said}");
        }
        // A scale that is no number, in the second block of the last row.
        for at in kind.scale_offsets() {
            for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
                let mut bytes = bytes.clone();
                let start = 5 * kind.block_bytes() + at;
                bytes[start..start + 2].copy_from_slice(&bad.to_le_bytes());
                let said = refused(kind, shape, &bytes);
                let place = format!("columns {elements} to {} in row 2", 2 * elements - 1);
                assert!(said.contains(&place) && said.contains("NaN or infinite"), "{kind:?}: {said}");
            }
        }
    }
}

/// A table of tokens and output heads built from a checkpoint: the table in blocks, and the same in float32.
struct Layers {
    embedding: Embedding,
    tied: Rc<Linear>,
    head: Rc<Linear>,
}

const V: i64 = 300;
const D: i64 = 256;

/// Returns a checkpoint with a table of tokens and a head, in blocks or in float32.
fn checkpoint(kind: GgmlType, in_blocks: bool) -> Weights {
    let (table, own) = (plain_blocks(kind, [V, D], 54), plain_blocks(kind, [V, D], 55));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let dense = |bytes: &[u8]| numbers(kind, [V, D], bytes);
    let (dense_table, dense_own) = (dense(&table), dense(&own));
    let spare = Tensor::ones([2], (Kind::Float, Device::Cpu));
    let tensors = match in_blocks {
        true => vec![("spare", &spare)],
        false => vec![("embed_tokens.weight", &dense_table), ("lm_head.weight", &dense_own)],
    };
    weights::save(&file, tensors).unwrap();
    let mut checkpoint = Weights::open_file(&file).unwrap();
    if in_blocks {
        let stored = |bytes| Rc::new(Stored { kind, shape: [V, D], bytes });
        checkpoint.add_quantised("embed_tokens.weight".into(), stored(table));
        checkpoint.add_quantised("lm_head.weight".into(), stored(own));
    }
    checkpoint
}

fn layers(kind: GgmlType, in_blocks: bool, dtype: Kind) -> Layers {
    let checkpoint = checkpoint(kind, in_blocks);
    let none: Vec<&dyn AdapterPlan> = Vec::new();
    let builder = ModelBuilder::new(WeightSource::Disk(&checkpoint), device(), dtype, None, none);
    builder.tie_head();
    let embedding = (builder.root() / "embed_tokens").embedding(V, D);
    let tied = Rc::new((builder.root() / "lm_head").tied_head(&embedding));
    let head = Rc::new((builder.root() / "lm_head").output_head(D, V));
    let built = builder.finish().unwrap();
    let bytes: u64 = built.store.base().filter_map(|p| p.quantised_bytes(None)).sum();
    let expected = 2 * (V * D) as u64 / kind.block_elements() as u64 * kind.block_bytes() as u64;
    assert_eq!(bytes, if in_blocks { expected } else { 0 });
    Layers { embedding, tied, head }
}

/// Builds the table of tokens with an adapter, its factors filled with numbers, and looks up some rows.
fn adapted_rows(spec: &LoraSpec, in_blocks: bool) -> Result<Tensor> {
    let (checkpoint, plan) = (checkpoint(GgmlType::Q8_0, in_blocks), ModulePlan::new(spec).unwrap());
    let plans: Vec<&dyn AdapterPlan> = vec![&plan];
    let builder = ModelBuilder::new(WeightSource::Disk(&checkpoint), device(), Kind::Float, None, plans);
    let embedding = (builder.root() / "embed_tokens").embedding(V, D);
    let built = builder.finish()?;
    built.switches.active.set(Some(0));
    for p in built.store.adapter(0).filter(|p| p.trainable()) {
        let values = Tensor::arange(p.count() as i64, (Kind::Float, device())).sin().view_as(&p.tensor);
        tch::no_grad(|| p.tensor.shallow_clone().copy_(&values));
    }
    let copies = built.store.adapter(0).filter(|p| p.name.contains("base_layer")).count();
    assert_eq!(copies, usize::from(!in_blocks), "copies of the base weight");
    Ok(embedding.forward(&Tensor::from_slice(&[4i64, 299, 4, 0]).to_device(device())))
}

#[test]
fn adapters_of_a_table_in_blocks_work_or_are_refused_by_name() {
    let targets = Targets::Names(vec!["embed_tokens".into()]);
    let lora = LoraSpec { rank: 2, targets, ..LoraSpec::default() };
    let (found, expected) = (adapted_rows(&lora, true).unwrap(), adapted_rows(&lora, false).unwrap());
    assert!(found.equal(&expected));
    let refused = |spec: &LoraSpec| adapted_rows(spec, true).unwrap_err().to_string();
    let said = refused(&LoraSpec { dora: true, ..lora.clone() });
    assert!(said.contains("embed_tokens") && said.contains("`dora`") && said.contains("stored quantised"), "{said}");
    let saved = LoraSpec { modules_to_save: vec!["embed_tokens".into()], targets: Targets::default(), ..lora.clone() };
    let said = refused(&saved);
    assert!(said.contains("embed_tokens.weight") && said.contains("cannot be trained"), "{said}");
}

#[test]
fn tables_and_heads_in_blocks_compute_what_their_numbers_compute() {
    for kind in [GgmlType::Q4_1, GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q3_K] {
        for dtype in [Kind::Float, Kind::BFloat16] {
            let (blocks, dense) = (layers(kind, true, dtype), layers(kind, false, dtype));
            let ids = Tensor::from_slice(&[299i64, 0, 17, 17, 5]).to_device(device());
            let rows = |l: &Layers| l.embedding.forward(&ids);
            assert!(same_bits(&rows(&blocks), &rows(&dense)), "{kind:?} {dtype:?}: rows of the table");
            assert_eq!((blocks.embedding.count(), blocks.tied.outputs(), blocks.head.outputs()), (V, V, V));

            tch::manual_seed(54);
            let n = 600; // several chunks
            let h = Tensor::randn([n, D], (Kind::Float, device())).to_kind(dtype);
            let targets = Tensor::randint(V, [n], (Kind::Int64, device()));
            for (name, of) in [("tied", (|l| &l.tied) as fn(&Layers) -> &Rc<Linear>), ("own", |l| &l.head)] {
                let scores = |l: &Layers, temperature: f64, entropy: bool| {
                    let h = h.copy().set_requires_grad(true);
                    let s = head::target_scores(of(l), &h, &targets, temperature, entropy);
                    let sum = s.entropy.iter().fold(s.log_probs.sum(Kind::Float), |sum, e| sum + e.sum(Kind::Float));
                    native::backward(&[&sum], &[&sum.ones_like()]).unwrap();
                    [s.log_probs.detach(), s.hits, h.grad()]
                };
                let sums = |l: &Layers| {
                    let h = h.copy().set_requires_grad(true);
                    let sum = chunked::sum_over_logits(of(l), &h, |logits, _| [logits.logsumexp(-1, false)]);
                    native::backward(&[&sum.total], &[&sum.total.ones_like()]).unwrap();
                    [sum.total.detach(), sum.rows[0].shallow_clone(), h.grad()]
                };
                let decoded = |l: &Layers| {
                    let (_no_grad, _decoding) = (tch::no_grad_guard(), DecodingGuard::begin());
                    [1, 3, 40].map(|rows| of(l).forward(&h.narrow(0, 0, rows)))
                };
                let case = format!("{kind:?} {dtype:?} {name}");
                for (temperature, entropy) in [(1.0, false), (0.7, true)] {
                    for (a, b) in
                        scores(&blocks, temperature, entropy).iter().zip(&scores(&dense, temperature, entropy))
                    {
                        assert!(a.equal(b), "{case}: temperature {temperature}");
                    }
                }
                assert!(sums(&blocks).iter().zip(&sums(&dense)).all(|(a, b)| a.equal(b)), "{case}: sums");
                assert!(decoded(&blocks).iter().zip(&decoded(&dense)).all(|(a, b)| a.equal(b)), "{case}: decoding");
            }
        }
    }
}
