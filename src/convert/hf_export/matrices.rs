//! Which matrices of a model are written quantised, and the tensors that each becomes in transformers' layouts.

use super::format::HfFormat;
use crate::convert::folder::config_file::dtype_name;
use crate::error::{Error, Result};
use crate::models::{Config, Model, expert_number};
use crate::native::quantised::{BLOCK, GROUP};
use crate::nn::quantised::{BlockScales, four_bit_values, scale_values};
use crate::nn::safetensors::{Dtype, TensorHeader};
use crate::nn::weights::bytes;
use crate::nn::{LayerKind, Quantisation, QuantisedFormat, QuantisedParam, QuantisedWeight};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

/// The sizes that a block of FP8 may have, in the order in which they are tried: the first is that of the published checkpoints.
const FP8_BLOCKS: [i64; 3] = [128, 64, 32];

/// Layers that vLLM computes as one, and refuses if only some of them are quantised.
const FUSED: [&[&str]; 4] =
    [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"], &["q_a_proj", "kv_a_proj_with_mqa"]];

/// The longest text of a number in a description.
const NUMBER: usize = 25;

/// The matrices that are written quantised.
pub(super) struct QuantisedMatrices {
    form: MatrixForm,
    /// By the name of the weight: the shape (out, in), and whether the model has it as (in, out).
    matrices: BTreeMap<String, ([i64; 2], bool)>,
    /// The linear layers that are not quantised, in the way in which config.json lists them.
    kept: Vec<String>,
    /// The dtype of the model's other matrices.
    main: Kind,
    /// What the user should know.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum MatrixForm {
    /// FP8 in square blocks of this size.
    Fp8(i64),
    /// NF4 with 8-bit scales.
    Nf4,
}

/// A tensor that a matrix becomes.
struct Part {
    /// What follows the name of the module.
    ending: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl QuantisedMatrices {
    /// Chooses the matrices of a model: those that a run with quantised weights quantises, as far as transformers has a form for
    /// them. `outline`: the model, whose numbers are not looked at. `main`: the dtype of its matrices. `None` for a format that
    /// quantises nothing. Fails if no matrix is left.
    pub fn choose(outline: &Model, format: HfFormat, main: Kind) -> Result<Option<Self>> {
        if !format.is_quantised() {
            return Ok(None);
        }
        let config = outline.config();
        // transformers has the experts of a layer in one tensor, which bitsandbytes does not quantise. That of a family whose
        // files have it, too, has biases beside it, which its FP8 experts do not.
        let stays = |name: &str| {
            expert_number(name).is_some() && (format == HfFormat::Nf4 || config.stacked_experts().is_some())
        };
        let mut matrices = BTreeMap::new();
        let mut others = Vec::new();
        for p in outline.params().base() {
            let matrix = matches!(p.layer, LayerKind::Linear | LayerKind::Router | LayerKind::Head) && p.is_matrix();
            match p.quantised {
                QuantisedParam::Possible if !stays(&p.name) => {
                    let [a, b] = p.tensor.size()[..] else { continue };
                    matrices.insert(p.name.clone(), (if p.transposed { [b, a] } else { [a, b] }, p.transposed));
                }
                _ if matrix => others.push(p.name.clone()),
                _ => {}
            }
        }
        let all = matrices.len();
        let form = match format {
            HfFormat::Nf4 => MatrixForm::Nf4,
            _ => MatrixForm::Fp8(fp8_block(&matrices)),
        };
        if let MatrixForm::Fp8(block) = form {
            let kept = undivided(&matrices, block);
            matrices.retain(|name, _| !kept.contains(name));
            others.extend(kept);
        }
        if matrices.is_empty() {
            return Err(none_fits(config, format));
        }
        let mut notes = Vec::new();
        let experts = others.iter().filter(|name| stays(name)).count();
        if experts > 0 {
            notes.push(format!(
                "the {experts} matrices of experts keep their dtype: transformers has those of a layer in one tensor, which it does not quantise to {}",
                format.name()
            ));
        }
        if let MatrixForm::Fp8(block) = form {
            if matrices.len() < all {
                notes.push(format!(
                    "{} of {all} matrices keep their dtype: their sides, or those of layers that are computed with them, are no multiples of {block}",
                    all - matrices.len()
                ));
            }
            if block != FP8_BLOCKS[0] {
                notes.push(format!(
                    "blocks are {block} x {block}, because the sides of most matrices are no multiples of {}; kernels for {0} x {0} alone do not run them",
                    FP8_BLOCKS[0]
                ));
            }
        }
        Ok(Some(Self { form, matrices, kept: kept_modules(&others), main, notes }))
    }

    /// Returns true if the weight of this name is written quantised.
    pub fn contains(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    /// Returns the headers of the tensors that a weight becomes.
    pub fn headers(&self, name: &str) -> Vec<TensorHeader> {
        let module = module_of(name);
        let header = |part: Part| TensorHeader::new(format!("{module}{}", part.ending), part.dtype, part.shape);
        self.parts(self.matrices[name].0).into_iter().map(header).collect()
    }

    fn parts(&self, shape: [i64; 2]) -> Vec<Part> {
        let part = |ending, dtype, shape: &[i64]| {
            let shape = shape.iter().map(|n| *n as usize).collect();
            Part { ending, dtype, shape }
        };
        let [outputs, inputs] = shape;
        match self.form {
            MatrixForm::Fp8(block) => vec![
                part(".weight", Dtype::F8_E4M3, &shape),
                part(".weight_scale_inv", Dtype::F32, &[outputs / block, inputs / block]),
            ],
            MatrixForm::Nf4 => {
                let up = |n: i64, by: i64| (n + by - 1) / by;
                let blocks = up(outputs * inputs, BLOCK);
                let state = self.description(shape, 0.0).len() as i64;
                vec![
                    part(".weight", Dtype::U8, &[up(outputs * inputs, 2), 1]),
                    part(".weight.absmax", Dtype::U8, &[blocks]),
                    part(".weight.nested_absmax", Dtype::F32, &[up(blocks, GROUP)]),
                    part(".weight.nested_quant_map", Dtype::F32, &[scale_values().len() as i64]),
                    part(".weight.quant_map", Dtype::F32, &[four_bit_values(QuantisedFormat::Nf4).len() as i64]),
                    part(".weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[state]),
                ]
            }
        }
    }

    /// Quantises the tensor of a weight, which is in its shape in a directory.
    pub fn quantise(&self, name: &str, tensor: &Tensor) -> Result<QuantisedWeight> {
        let (_, transposed) = self.matrices[name];
        let matrix = if transposed { tensor.tr() } else { tensor.shallow_clone() };
        let made = match self.form {
            MatrixForm::Fp8(block) => QuantisedWeight::quantise_to_fp8(&matrix, [block; 2]),
            MatrixForm::Nf4 => {
                QuantisedWeight::quantise(&matrix, Quantisation::new(QuantisedFormat::Nf4, true), Device::Cpu)
            }
        };
        made.map_err(|e| e.context(format!("`{name}`")))
    }

    /// Returns the bytes of one of the tensors that a weight becomes.
    pub fn bytes(&self, name: &str, header: &TensorHeader, weight: &QuantisedWeight) -> Result<Vec<u8>> {
        let none = || Error::bug(format!("`{name}` is in {}, not in the format of the export", weight.describe()));
        let ending = &header.name[module_of(name).len()..];
        if let MatrixForm::Fp8(_) = self.form {
            let [codes, scales] = weight.fp8_tensors().ok_or_else(none)?;
            return Ok(bytes(if ending == ".weight" { &codes } else { &scales }));
        }
        let Some((codes, BlockScales::Double { codes: absmax, scales, offset })) = weight.block_tensors() else {
            return Err(none());
        };
        Ok(match ending {
            ".weight" => bytes(&codes),
            ".weight.absmax" => bytes(&absmax),
            ".weight.nested_absmax" => bytes(&scales),
            ".weight.nested_quant_map" => bytes(&Tensor::from_slice(scale_values())),
            ".weight.quant_map" => bytes(&Tensor::from_slice(four_bit_values(QuantisedFormat::Nf4))),
            _ => self.description(weight.shape(), offset).into_bytes(),
        })
    }

    /// Returns bitsandbytes' description of a matrix in JSON. Its length does not depend on the number in it, because a file's
    /// header, which comes first, has the length.
    fn description(&self, shape: [i64; 2], offset: f32) -> String {
        let dtype = dtype_name(self.main).unwrap_or("float32");
        let [outputs, inputs] = shape;
        let text = format!(
            r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{outputs}, {inputs}], "nested_blocksize": {GROUP}, "nested_dtype": "float32", "nested_offset": "#
        );
        let number = json!(f64::from(offset)).to_string() + "}";
        format!("{text}{number:NUMBER$}")
    }

    /// Returns the section `quantization_config` of config.json.
    pub fn section(&self) -> Result<Value> {
        Ok(match self.form {
            MatrixForm::Fp8(block) => json!({
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "weight_block_size": [block, block],
                "modules_to_not_convert": self.kept,
            }),
            MatrixForm::Nf4 => json!({
                "quant_method": "bitsandbytes",
                "load_in_4bit": true,
                "load_in_8bit": false,
                "bnb_4bit_compute_dtype": dtype_name(self.main)?,
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": true,
                "llm_int8_enable_fp32_cpu_offload": false,
                "llm_int8_has_fp16_weight": false,
                "llm_int8_skip_modules": self.kept,
                "llm_int8_threshold": 6.0,
            }),
        })
    }
}

/// Returns the name of the module that a weight belongs to.
fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Returns the size of blocks: the largest for which most of the numbers are in matrices that are quantised.
fn fp8_block(matrices: &BTreeMap<String, ([i64; 2], bool)>) -> i64 {
    let numbers = |block: i64| -> i64 {
        let kept = undivided(matrices, block);
        matrices.iter().filter(|(name, _)| !kept.contains(*name)).map(|(_, (shape, _))| shape[0] * shape[1]).sum()
    };
    FP8_BLOCKS.into_iter().find(|block| 2 * numbers(*block) > numbers(1)).unwrap_or(FP8_BLOCKS[0])
}

/// Returns the matrices that blocks of this size do not divide, and those that are computed together with one of them.
fn undivided(matrices: &BTreeMap<String, ([i64; 2], bool)>, block: i64) -> BTreeSet<String> {
    let ragged = |name: &str| matrices.get(name).is_some_and(|(shape, _)| shape.iter().any(|size| size % block != 0));
    let together = |name: &str| -> Vec<String> {
        let Some((parent, layer)) = module_of(name).rsplit_once('.') else { return Vec::new() };
        let group = FUSED.iter().find(|group| group.contains(&layer)).copied().unwrap_or_default();
        group.iter().map(|layer| format!("{parent}.{layer}.weight")).collect()
    };
    let kept = |name: &&String| ragged(name) || together(name).iter().any(|other| ragged(other));
    matrices.keys().filter(kept).cloned().collect()
}

/// Returns the modules of weights that are not quantised, those of a layer's experts as one. The output head is always one of them.
fn kept_modules(names: &[String]) -> Vec<String> {
    let module = |name: &String| match expert_number(name) {
        Some(_) => name.split(".experts.").next().map(|layer| format!("{layer}.experts")).unwrap_or_default(),
        None => module_of(name).to_string(),
    };
    let modules: BTreeSet<String> = names.iter().map(module).chain(["lm_head".to_string()]).collect();
    modules.into_iter().collect()
}

/// Returns the error for a model without a matrix that can be quantised.
fn none_fits(config: &Config, format: HfFormat) -> Error {
    let error = config.refuse(format!("no matrix of a linear layer can be written in {}", format.name()));
    match format {
        HfFormat::Fp8 => error.hint(format!(
            "FP8 has blocks of {FP8_BLOCKS:?} outputs and as many inputs, and no matrix has such sides: choose --type nf4, f32, bf16 or f16"
        )),
        _ => error.hint("choose --type f32, bf16 or f16"),
    }
}
