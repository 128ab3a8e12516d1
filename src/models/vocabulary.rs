//! Rows of embedding and output head that differ from those in a model's files: those of new tokens.
//!
//! A base gets them when it is opened, so that all else (layers, adapters, merging, results) sees a base with a larger
//! table. Their values are computed from the base's rows for a run that adds tokens, or come from the file of an adapter
//! that was trained with them.

use super::family::Config;
use crate::adapters::{AdapterFile, HEAD};
use crate::error::{Error, Result};
use crate::nn::Weights;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Number of rows that are summed at once.
const ROWS: i64 = 4096;

/// The first value of the row of a new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowStart {
    /// The token's id.
    pub id: u32,
    /// The tokens whose rows' mean it is; empty: the mean of all rows.
    pub mean_of: Vec<u32>,
}

/// The rows of a base's tables of tokens that its files lack or that take the place of theirs.
#[derive(Debug, Default)]
pub struct VocabularyRows {
    /// Number of rows of the tables, unless the base has more.
    rows: i64,
    /// The rows that are computed from the base's. Rows that are neither these nor given are the mean of all rows.
    starts: Vec<RowStart>,
    /// Values by module: rows by their number, or a whole table.
    given: BTreeMap<String, GivenRows>,
    /// True if rows that are not known are an error that names this file.
    from_file: Option<std::path::PathBuf>,
}

/// Values of rows of one table.
#[derive(Debug)]
enum GivenRows {
    /// (V, D)
    All(Tensor),
    /// The numbers of rows, and their values (n, D).
    Some(Vec<i64>, Tensor),
}

impl Clone for VocabularyRows {
    fn clone(&self) -> Self {
        let given = |rows: &GivenRows| match rows {
            GivenRows::All(table) => GivenRows::All(table.shallow_clone()),
            GivenRows::Some(ids, values) => GivenRows::Some(ids.clone(), values.shallow_clone()),
        };
        Self {
            rows: self.rows,
            starts: self.starts.clone(),
            given: self.given.iter().map(|(module, rows)| (module.clone(), given(rows))).collect(),
            from_file: self.from_file.clone(),
        }
    }
}

impl VocabularyRows {
    /// Describes tables of `rows` rows, in which the rows of new tokens start in this way.
    pub fn starting(rows: i64, starts: Vec<RowStart>) -> Self {
        Self { rows, starts, ..Self::default() }
    }

    /// Returns what the files of adapters say about the base's tables of tokens, whose `config` this is; `None` if these
    /// stay as they are. Fails if two files contradict each other.
    pub fn of_adapters(config: &Config, files: &[(&AdapterFile, &Path)]) -> Result<Option<Self>> {
        let mut found = Self { rows: config.vocab_size, ..Self::default() };
        for (file, folder) in files {
            for module in tables(config) {
                let Some(rows) = given_rows(file, module, config.vocab_size)? else { continue };
                let count = match &rows {
                    GivenRows::All(table) => table.size()[0],
                    GivenRows::Some(ids, _) => ids.iter().max().map_or(0, |id| id + 1),
                };
                if count > found.rows {
                    (found.rows, found.from_file) = (count, Some(folder.to_path_buf()));
                }
                match (found.given.get(module), &rows) {
                    (Some(GivenRows::All(a)), GivenRows::All(b)) if a.size() != b.size() || !a.equal(b) => {
                        return Err(Error::user(format!(
                            "{}: the adapter was trained on another `{module}` than one that is loaded with it",
                            folder.display()
                        ))
                        .hint("merge one of them first, and load the other on its own base"));
                    }
                    (Some(GivenRows::All(_)), _) => {}
                    _ => drop(found.given.insert(module.to_string(), rows)),
                }
            }
        }
        Ok((!found.given.is_empty()).then_some(found))
    }

    /// Returns the number of rows that a base's tables have to be enlarged to; `None` if they have enough.
    pub fn grown(&self, config: &Config) -> Option<i64> {
        Some(self.rows).filter(|rows| *rows > config.vocab_size)
    }

    /// Describes, for a cache, what the values depend on besides the base and adapters.
    pub fn identity(&self) -> String {
        format!("{} {:?}", self.rows, self.starts)
    }

    /// Gives the rows to a base: `config` gets the number of rows, and `weights` the tables, that of an output head of its own
    /// only if the model has one (`with_head`). Fails for a table that is stored
    /// quantised, for values that do not fit the base, and if rows of a table are not known.
    pub fn apply(&self, config: &mut Config, weights: &mut Weights, with_head: bool) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let rows = self.rows.max(config.vocab_size);
        if rows > config.vocab_size && config.has_layer_inputs() {
            return Err(config
                .refuse(format!(
                    "new tokens have no rows in the table that the layers of a {} model read, `embed_tokens_per_layer`",
                    config.model_type
                ))
                .hint("leave new tokens out, or use tokens that the vocabulary has and no text contains"));
        }
        for module in tables(config).into_iter().filter(|module| with_head || *module != HEAD) {
            let name = format!("{module}.weight");
            let Some(old) = weights.get(&name) else {
                if weights.quantised(&name).is_some() {
                    return Err(Error::user(format!(
                        "{}: `{name}` is stored quantised, so it cannot get rows of new tokens",
                        weights.origin().display()
                    ))
                    .hint("use the model in its original number format"));
                }
                continue; // building the model reports the missing tensor
            };
            if old.size() == [config.vocab_size, config.hidden_size] {
                let table = self.table(module, &old, rows)?;
                weights.replace(&name, table)?;
            }
        }
        if rows > config.vocab_size {
            config.resize_vocabulary(rows)?;
        }
        Ok(())
    }

    /// Returns the table (V', D) of a module, given that of the base (V, D), in the base's dtype.
    fn table(&self, module: &str, old: &Tensor, rows: i64) -> Result<Tensor> {
        let (count, width) = old.size2()?;
        let misfit = |shape: Vec<i64>| {
            let file = self.from_file.as_deref().unwrap_or(Path::new("the adapter")).display().to_string();
            Error::user(format!("{file}: its rows of `{module}` have shape {shape:?}, the base's have width {width}"))
                .hint("was it trained on another base? adapter_config.json names it under base_model_name_or_path")
        };
        let mut known = count; // the first row whose value is not known
        let table = Tensor::zeros([rows, width], (old.kind(), Device::Cpu));
        table.narrow(0, 0, count).copy_(old);
        match self.given.get(module) {
            Some(GivenRows::All(all)) => {
                if all.dim() != 2 || all.size()[1] != width || all.size()[0] > rows {
                    return Err(misfit(all.size()));
                }
                table.narrow(0, 0, all.size()[0]).copy_(all);
                known = known.max(all.size()[0]);
            }
            Some(GivenRows::Some(ids, values)) => {
                if values.size() != [ids.len() as i64, width] || ids.iter().any(|id| !(0..rows).contains(id)) {
                    return Err(misfit(values.size()));
                }
                let _ = table.shallow_clone().index_copy_(0, &Tensor::from_slice(ids), &values.to_kind(old.kind()));
                while ids.contains(&known) {
                    known += 1;
                }
            }
            None => {}
        }
        if let Some(file) = &self.from_file {
            return match known >= rows {
                true => Ok(table),
                false => Err(Error::user(format!(
                    "{}: the adapter was trained with a vocabulary of {rows} tokens, but has no row {known} of `{module}`; the base has {count}",
                    file.display()
                ))
                .hint("resize the base with the program that trained the adapter and save it, or train the rows of the output head, too")),
            };
        }
        let all = mean(old, None);
        for row in count..rows {
            table.get(row).copy_(&all);
        }
        for start in &self.starts {
            let first = if start.mean_of.is_empty() { all.shallow_clone() } else { mean(old, Some(&start.mean_of)) };
            table.get(start.id.into()).copy_(&first);
        }
        Ok(table)
    }
}

/// Returns the modules of a base that are tables of tokens.
fn tables(config: &Config) -> Vec<&'static str> {
    let embedding = config.family().embedding.strip_suffix(".weight").unwrap_or(config.family().embedding);
    if config.tie_word_embeddings { vec![embedding] } else { vec![embedding, HEAD] }
}

/// Returns the rows of a table that an adapter's file has instead of the base's `count` rows; `None` if it has none.
fn given_rows(file: &AdapterFile, module: &str, count: i64) -> Result<Option<GivenRows>> {
    if let Some(table) = file.tables.get(module) {
        return Ok(Some(GivenRows::All(table.shallow_clone())));
    }
    let find = |name: &str| file.tensors.get(&format!("{module}.{name}"));
    // Tables that the adapter itself replaces matter only where the base has no rows.
    let larger = ["base_layer.weight", "weight"].iter().find_map(|name| find(name)).filter(|t| t.size()[0] > count);
    if let Some(table) = larger {
        let rows = table.size()[0];
        return Ok(Some(GivenRows::Some((count..rows).collect(), table.narrow(0, count, rows - count))));
    }
    let trained = file.spec.trained_rows()?;
    let ids = if module == HEAD { &trained.head } else { &trained.embedding };
    let rows = ["token_adapter.trainable_tokens_delta", "trainable_tokens_delta"].iter().find_map(|name| find(name));
    let Some(rows) = rows.filter(|rows| rows.dim() == 2 && rows.size()[0] == ids.len() as i64) else { return Ok(None) };
    let new: Vec<i64> = (0..ids.len() as i64).filter(|at| ids[*at as usize] >= count).collect();
    if new.is_empty() {
        return Ok(None);
    }
    let values = rows.index_select(0, &Tensor::from_slice(&new));
    Ok(Some(GivenRows::Some(new.iter().map(|at| ids[*at as usize]).collect(), values)))
}

/// Returns the mean (D) of rows of a table, of all of them for `None`. The order of the sums does not depend on threads.
fn mean(table: &Tensor, rows: Option<&[u32]>) -> Tensor {
    let sum = |part: Tensor| part.to_kind(Kind::Double).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    let (count, width) = (table.size()[0], table.size()[1]);
    let (total, n) = match rows {
        Some(rows) => {
            let ids: Vec<i64> = rows.iter().map(|id| i64::from(*id)).collect();
            (sum(table.index_select(0, &Tensor::from_slice(&ids))), ids.len() as i64)
        }
        None => {
            let mut total = Tensor::zeros([width], (Kind::Double, Device::Cpu));
            for at in (0..count).step_by(ROWS as usize) {
                total += sum(table.narrow(0, at, ROWS.min(count - at)));
            }
            (total, count)
        }
    };
    (total / n.max(1) as f64).to_kind(table.kind())
}
