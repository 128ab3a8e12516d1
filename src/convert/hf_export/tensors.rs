//! The tensors of the written files: which there are, and their bytes.

use super::format::HfFormat;
use super::matrices::QuantisedMatrices;
use crate::convert::export::publish::tensor_entry;
use crate::convert::gguf_export::source::SourceWeights;
use crate::error::{Error, Result};
use crate::models::{Config, FileTensor, file_tensors};
use crate::nn::safetensors::TensorHeader;
use crate::nn::weight::cast;
use crate::nn::weights::bytes;
use crate::nn::{QuantisedWeight, Weights};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The tensors of an export.
pub(super) struct ExportTensors<'a> {
    source: &'a SourceWeights<'a>,
    format: HfFormat,
    quantised: Option<&'a QuantisedMatrices>,
    /// Those of the files, by name; quantised matrices by the name of the weight.
    files: BTreeMap<String, FileTensor>,
    /// The dtype of each of the model's tensors.
    kinds: BTreeMap<String, Kind>,
    /// For each tensor that is written, that of `files` which it is made from.
    made_from: BTreeMap<String, String>,
    /// The headers, in the order in which files are filled.
    pub headers: Vec<TensorHeader>,
    /// The matrix that was quantised last: its tensors follow each other in a file.
    last: Option<(String, QuantisedWeight)>,
}

impl<'a> ExportTensors<'a> {
    /// Plans the tensors of a model whose weights are `weights`.
    pub fn plan(
        config: &Config,
        weights: &Weights,
        source: &'a SourceWeights<'a>,
        format: HfFormat,
        quantised: Option<&'a QuantisedMatrices>,
    ) -> Result<Self> {
        let shape = |name: &str| weights.shape(name).unwrap_or_default().to_vec();
        let parameters = weights.names().map(|name| (name, shape(name)));
        let files: BTreeMap<String, FileTensor> =
            file_tensors(config, parameters).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let kind_of = |name: &str| match weights.kind(name).unwrap_or(Kind::Float) {
            own @ (Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16) => format.dtype().unwrap_or(own),
            own => own,
        };
        let kinds = weights.names().map(|name| (name.to_string(), kind_of(name))).collect::<BTreeMap<_, _>>();
        let (mut headers, mut made_from) = (Vec::new(), BTreeMap::new());
        for (name, tensor) in &files {
            let own = match quantised.filter(|matrices| matrices.contains(name)) {
                Some(matrices) => matrices.headers(name),
                None => vec![tensor_entry(name, &tensor.shape, kinds[&tensor.parts[0]])?],
            };
            made_from.extend(own.iter().map(|header| (header.name.clone(), name.clone())));
            headers.extend(own);
        }
        Ok(Self { source, format, quantised, files, kinds, made_from, headers, last: None })
    }

    /// Returns the names of the model's tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// Returns the name of a tensor's format in a summary.
    pub fn format_of(&self, name: &str) -> String {
        match self.quantised_matrices(name) {
            Some(_) => self.format.name().into(),
            None => format!("{:?}", self.kinds[name]).to_lowercase(),
        }
    }

    /// Returns how the weight of this name is quantised; `None` if it is not.
    pub fn quantised_matrices(&self, name: &str) -> Option<&'a QuantisedMatrices> {
        self.quantised.filter(|matrices| matrices.contains(name))
    }

    /// Returns one of the model's tensors as it is to be read back. Fails for values that do not fit into float16.
    pub fn rounded(&self, name: &str) -> Result<Tensor> {
        let (tensor, kind) = (self.source.whole(name)?, self.kinds[name]);
        let rounded = cast(&tensor, kind);
        if kind == Kind::Half && rounded.isfinite().all().int64_value(&[]) == 0 {
            let largest = tensor.abs().max().double_value(&[]);
            return Err(Error::user(format!("tensor {name}: the value {largest} does not fit into float16"))
                .hint("choose another format: --type bf16 or f32"));
        }
        Ok(rounded)
    }

    /// Returns one of the model's tensors before it is rounded.
    pub fn exact(&self, name: &str) -> Result<Tensor> {
        self.source.whole(name)
    }

    /// Lets go of the memory that one of the model's tensors took when it was read.
    pub fn release(&self, name: &str) {
        self.source.release(name);
    }

    /// Returns the bytes of a tensor that is written.
    pub fn bytes(&mut self, header: &TensorHeader) -> Result<Vec<u8>> {
        let name = &self.made_from[&header.name];
        let Some(matrices) = self.quantised_matrices(name) else {
            let written = bytes(&self.files[name].values(|part| self.rounded(part))?);
            self.files[name].parts.iter().for_each(|part| self.release(part));
            return Ok(written);
        };
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            self.last = Some((name.clone(), matrices.quantise(name, &self.source.whole(name)?)?));
            self.release(name);
        }
        let (_, weight) = self.last.as_ref().ok_or_else(|| Error::bug("a matrix was quantised and is gone"))?;
        matrices.bytes(name, header, weight)
    }
}
