//! OFT (Qiu et al. 2023, arXiv 2306.07280; rotating inputs as Qiu et al. 2025, arXiv 2506.19847): the layer's inputs are
//! rotated in blocks, `y = W R x + b`. A block's rotation is the Cayley transform of a skew-symmetric matrix, whose entries
//! are trained and start at 0.

mod rotation;

use super::base_product::{base_product, row_by_row};
use super::cached::Cached;
use super::kind::{AdapterKind, ModuleMemory};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::weight::{is_decoding, product};
use crate::nn::{Adapter, Dense, Weight};
use rotation::{Cayley, block_diagonal, block_of, entries_of, identity, rotated, rotated_by};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// Name of a module's entries (r, b (b - 1) / 2) in PEFT's files.
const ENTRIES: &str = "oft_R.weight";
/// Name of those of an embedding.
const TABLE_ENTRIES: &str = "oft_embedding_R.weight";

/// OFT: `y = W R x + b`, where R rotates blocks of the inputs; of an embedding it rotates the rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct OftSpec {
    /// Number of inputs that are rotated together; larger blocks have more parameters. In a layer whose number of inputs it
    /// does not divide, the nearest divisor is used.
    #[schemars(range(min = 2, max = 4096))]
    pub block: i64,
    /// Terms of the Neumann series that stands for the inverse in the Cayley transform; `null`: the exact inverse, which is
    /// slower.
    #[schemars(range(min = 2, max = 64))]
    pub neumann_terms: Option<i64>,
    /// One rotation for all blocks of a layer.
    pub block_share: bool,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

/// PEFT's values.
impl Default for OftSpec {
    fn default() -> Self {
        Self { block: 32, neumann_terms: Some(5), block_share: false, modules: ModuleSettings::default() }
    }
}

impl OftSpec {
    fn cayley(&self) -> Cayley {
        self.neumann_terms.map_or(Cayley::Exact, Cayley::Neumann)
    }

    /// Returns the number of rotations of a layer, and their size.
    fn blocks(&self, inputs: i64) -> (i64, i64) {
        let block = block_of(inputs, self.block);
        (if self.block_share { 1 } else { inputs / block }, block)
    }
}

impl ModuleKind for OftSpec {
    const NAME: &'static str = "oft";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }
}

impl AdapterKind for OftSpec {
    fn title(&self) -> &'static str {
        "OFT"
    }

    fn describe(&self) -> String {
        format!("oft b{}", self.block)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachOft(self.clone())))
    }

    fn usual_lr(&self) -> f64 {
        1e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("block", json!(self.block)),
            ("neumann_terms", json!(self.neumann_terms)),
            ("block_share", json!(self.block_share)),
        ]
    }

    fn module_memory(&self, _module: &str, [_, inputs]: [u64; 2]) -> ModuleMemory {
        let matrices = inputs * block_of(inputs as i64, self.block) as u64;
        ModuleMemory { kept: 0, input: true, temporary: 10 * matrices }
    }

    fn peft_refusal(&self, _modules: &BTreeSet<&str>) -> Option<String> {
        peft::refusal_of_gpt2("OFT", self.modules.fan_in_fan_out)
    }

    fn config(&self, base: &str) -> Value {
        let own = json!({
            "bias": "none",
            "block_share": self.block_share,
            "coft": false,
            "eps": 6e-5,
            "fan_in_fan_out": self.modules.fan_in_fan_out,
            "init_weights": true,
            "module_dropout": 0.0,
            "num_cayley_neumann_terms": self.neumann_terms.unwrap_or(5),
            "oft_block_size": self.block,
            "peft_version": WRITTEN_AS,
            "r": 0,
            "use_cayley_neumann": self.neumann_terms.is_some(),
        });
        peft::config(self, "OFT", base, own)
    }

    fn tensor_prefix(&self) -> &'static str {
        "oft_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &[ENTRIES, TABLE_ENTRIES]
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let file = ModuleTensors { tensors, origin };
        let update = |module: &&str| {
            let table = file.find(module, TABLE_ENTRIES).is_some();
            let entries =
                file.get(module, if table { TABLE_ENTRIES } else { ENTRIES }, &[-1, -1])?.to_kind(Kind::Float);
            Ok((format!("{module}.weight"), Box::new(RotationUpdate { entries, spec: self.clone(), table }) as _))
        };
        modules.iter().map(update).collect()
    }
}

/// The version of PEFT whose OFT is written: PEFT takes a file without it for one of its older forms.
const WRITTEN_AS: &str = "0.18.0";

/// Reads the settings. Fails for options and values that ft does not support, and for files of PEFT before 0.18, in which
/// OFT was another function.
pub(super) fn read_config(config: &PeftConfig) -> Result<OftSpec> {
    config.check_keys(&[
        "block_share",
        "eps", // without effect unless `coft` is set
        "init_weights",
        "module_dropout",
        "num_cayley_neumann_terms",
        "oft_block_size",
        "r",
        "use_cayley_neumann",
    ])?;
    let series = config.read("use_cayley_neumann")?.unwrap_or(true);
    let terms = config.read("num_cayley_neumann_terms")?.unwrap_or(5);
    let version: String = config.read("peft_version")?.unwrap_or_default();
    let minor = |v: &str| v.strip_prefix("0.")?.split('.').next()?.parse::<u64>().ok();
    let old = version.is_empty() || minor(&version).is_some_and(|minor| minor < 18);
    if config.get("oft_block_size").is_none() || (series && old) {
        let hint = "OFT was another function before PEFT 0.18: merge it with the PEFT that trained it";
        return Err(config.unsupported("peft_version", hint));
    }
    let (block_size, rank) = (config.read("oft_block_size")?.unwrap_or(0), config.read("r")?.unwrap_or(0));
    if block_size < 2 || rank != 0 {
        let hint = "give the size of the blocks, oft_block_size, not their number";
        return Err(config.unsupported(if rank != 0 { "r" } else { "oft_block_size" }, hint));
    }
    if series && terms < 2 {
        return Err(config.unsupported("num_cayley_neumann_terms", "with fewer than 2 terms nothing is rotated"));
    }
    Ok(OftSpec {
        block: block_size,
        neumann_terms: series.then_some(terms),
        block_share: config.read("block_share")?.unwrap_or(false),
        modules: config.module_settings(&["q_proj", "v_proj", "c_attn"])?,
    })
}

/// Multiplies a weight by a rotation: W R, or the rows of a table as if they were inputs.
struct RotationUpdate {
    /// (r, b (b - 1) / 2)
    entries: Tensor,
    spec: OftSpec,
    table: bool,
}

impl WeightUpdate for RotationUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, transposed: bool) {
        let base = base.to_kind(Kind::Float);
        let weight = if transposed { base.tr() } else { base.shallow_clone() }; // (out, in)
        let rotated = match self.table {
            true => rotated_table(&weight, &self.entries, &self.spec),
            false => merged(&weight, &self.entries, &self.spec),
        };
        let change = (rotated - weight) * factor;
        *sum += if transposed { change.tr() } else { change };
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        let [first, second] = shape else { return false };
        let (blocks, block) = self.spec.blocks(if transposed { *first } else { *second });
        self.entries.size() == [blocks, entries_of(block)]
    }

    fn shape(&self) -> String {
        format!("{:?} (entries of rotations of blocks of {})", self.entries.size(), self.spec.block)
    }

    fn is_table(&self) -> bool {
        self.table
    }
}

/// Returns the weight (out, in) that gives the same outputs without rotated inputs. Rotates each row of the weight, because
/// `x D W^T = x (W D^T)^T`.
fn merged(weight: &Tensor, entries: &Tensor, spec: &OftSpec) -> Tensor {
    let inputs = weight.size()[1];
    let (_, block) = spec.blocks(inputs);
    weight.matmul(&block_diagonal(&spec.cayley().rotations(entries, block), inputs).tr())
}

/// Returns a table (V, D) with its rows rotated.
fn rotated_table(table: &Tensor, entries: &Tensor, spec: &OftSpec) -> Tensor {
    let width = table.size()[1];
    let (_, block) = spec.blocks(width);
    table.matmul(&block_diagonal(&spec.cayley().rotations(entries, block), width))
}

/// Attaches rotations of inputs, and of the rows of tables.
struct AttachOft(OftSpec);

impl AdaptLayer for AttachOft {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let table = layer.is_table();
        let [_, inputs] = if table { layer.vocabulary_matrix()? } else { layer.linear_matrix("OFT")? };
        let (blocks, block) = self.0.blocks(inputs);
        let entries = layer.trained(if table { TABLE_ENTRIES } else { ENTRIES }, identity(blocks, block));
        let oft = Oft { entries, spec: self.0.clone(), block, rotations: Default::default() };
        Ok(if table { Box::new(OftTable(oft)) } else { Box::new(oft) })
    }
}

/// The rotation of one layer's inputs.
struct Oft {
    /// (r, b (b - 1) / 2)
    entries: Tensor,
    spec: OftSpec,
    block: i64,
    /// For decoding: the rotations (r, b, b), cast.
    rotations: Cached,
}

impl Oft {
    /// Rotates rows (T, in).
    fn rotate(&self, x: &Tensor) -> Tensor {
        let cayley = self.spec.cayley();
        if is_decoding() {
            let rotations = || [cayley.rotations(&self.entries, self.block)];
            let [rotations] = self.rotations.get(x.kind(), &[&self.entries], rotations);
            return row_by_row(x, |x| rotated_by(x, &rotations));
        }
        rotated(x, &self.entries, self.block, cayley)
    }
}

impl Adapter for Oft {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        base_product(&self.rotate(x), &base.weight, base.bias.as_ref())
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        merged(&weight.to_kind(Kind::Float), &self.entries, &self.spec).to_kind(weight.kind())
    }
}

/// The rotation of the rows of a table, in float32 as in PEFT.
struct OftTable(Oft);

impl Adapter for OftTable {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight.dense(base.weight.kind())), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Weight) -> Tensor {
        self.0.rotate(&weight.rows(ids).to_kind(Kind::Float))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        rotated_table(&weight.to_kind(Kind::Float), &self.0.entries, &self.0.spec).to_kind(weight.kind())
    }
}
