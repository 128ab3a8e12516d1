//! The routers' weights. A router multiplies them with a token's hidden state, and the experts with the largest products compute the
//! token. So the row of an expert is the direction of hidden states that its prompts have, in the base.

use super::ExpertMerge;
use super::report::RouterReport;
use crate::convert::merge::model_input::ModelInput;
use crate::convert::merge::streaming::read_entries;
use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::merging::prune::{fill_with_normal_numbers, fill_with_random_numbers};
use crate::merging::{Delta, on_one_thread, svd};
use crate::models::{Heads, LoadOptions, Model, Storage};
use crate::nn::Tokens;
use crate::recipe::merge_file::{ExpertSource, GateMode};
use crate::report as progress;
use tch::{Device, Kind, Tensor};

/// Norms below this are not divided by, as in mergekit.
const SMALLEST_NORM: f64 = 1e-8;

/// The rows of all routers.
pub(super) struct Gates {
    /// By layer and expert: (D). The shared expert follows the others.
    rows: Vec<Vec<Vec<f32>>>,
    experts: usize,
}

/// Directions by layer: (D) each.
type Directions = Vec<Vec<f64>>;

impl Gates {
    /// Computes the rows as the file says. Fails if the base has no tokenizer and prompts are given.
    pub fn compute(merge: &ExpertMerge) -> Result<Self> {
        let (file, base) = (&merge.file, merge.base());
        let (layers, width) = (base.config.num_hidden_layers as usize, base.config.hidden_size as usize);
        let sources: Vec<&ExpertSource> = file.experts.iter().chain(&file.shared).collect();
        let by_expert: Vec<Directions> = match file.gates {
            GateMode::Random | GateMode::UniformRandom => {
                (0..sources.len()).map(|expert| random(file.gates, layers, width, expert, merge.seed)).collect()
            }
            _ => {
                let probe = Probe::open(base, file.gates)?;
                let bar = progress::bar(sources.len() as u64, "prompts");
                let directions = sources.iter().map(|source| {
                    let found = probe.direction(source);
                    bar.inc(1);
                    found
                });
                let directions = directions.collect::<Result<Vec<_>>>()?;
                bar.finish_and_clear();
                directions
            }
        };
        let row = |directions: &Directions, layer: usize| -> Vec<f32> {
            directions[layer].iter().map(|x| *x as f32).collect()
        };
        let of_layer = |layer: usize| by_expert.iter().map(|directions| row(directions, layer)).collect();
        let rows = (0..layers).map(of_layer).collect();
        Ok(Self { rows, experts: file.experts.len() })
    }

    /// Returns the router of a layer, row by row.
    pub fn router(&self, layer: usize) -> Vec<f32> {
        self.rows[layer][..self.experts].concat()
    }

    /// Returns the gate of the shared expert of a layer.
    pub fn shared(&self, layer: usize) -> Vec<f32> {
        self.rows[layer][self.experts..].concat()
    }

    /// Returns how well each router tells its experts apart.
    pub fn report(&self) -> Vec<RouterReport> {
        let of_layer = |(layer, rows): (usize, &Vec<Vec<f32>>)| {
            let rows = &rows[..self.experts];
            let dot =
                |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
            let cosine = |i: usize, j: usize| {
                let norms = (dot(&rows[i], &rows[i]) * dot(&rows[j], &rows[j])).sqrt();
                if norms > 0.0 { dot(&rows[i], &rows[j]) / norms } else { 0.0 }
            };
            let pairs = (0..rows.len()).flat_map(|i| (i + 1..rows.len()).map(move |j| (i, j)));
            let largest_cosine = pairs
                .map(|(i, j)| cosine(i, j))
                .fold(None, |most: Option<f64>, cosine| Some(most.map_or(cosine, |most| most.max(cosine))));
            let matrix = Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]).to_kind(Kind::Double);
            let values = on_one_thread(|| svd::singular_values(&Delta::Dense(matrix)));
            let smallest = values.last().copied().unwrap_or(0.0);
            let condition = (smallest > 0.0).then(|| values[0] / smallest);
            RouterReport { layer, largest_cosine, condition }
        };
        self.rows.iter().enumerate().map(of_layer).collect()
    }
}

/// Returns random rows of an expert for all layers: normal numbers, or uniform ones up to the reciprocal root of the width.
fn random(mode: GateMode, layers: usize, width: usize, expert: usize, seed: u64) -> Directions {
    let row = |layer: usize| {
        let (mut numbers, stream) = (vec![0.0; width], format!("gate {layer} {expert}"));
        match mode {
            GateMode::UniformRandom => {
                fill_with_random_numbers(&mut numbers, 0, seed, &stream);
                let most = (1.0 / width as f64).sqrt();
                numbers.iter_mut().for_each(|number| *number = (2.0 * *number - 1.0) * most);
            }
            _ => fill_with_normal_numbers(&mut numbers, 0, seed, &stream),
        }
        numbers
    };
    (0..layers).map(row).collect()
}

/// Measures what the base makes of prompts.
struct Probe<'a> {
    base: &'a ModelInput,
    mode: GateMode,
    tokenizer: ChatTokenizer,
    /// For hidden states. Its weights stay in their files.
    model: Option<Model>,
}

impl<'a> Probe<'a> {
    fn open(base: &'a ModelInput, mode: GateMode) -> Result<Self> {
        if !ChatTokenizer::in_directory(&base.folder) {
            return Err(Error::user(format!(
                "{}: no tokenizer, and prompts decide what the experts get",
                base.folder.display()
            ))
            .hint("add the tokenizer's files, or use `gate_mode: random`"));
        }
        let tokenizer = ChatTokenizer::load(&base.folder, None)?;
        let options = LoadOptions {
            device: Device::Cpu,
            kind: Kind::Float,
            storage: Storage::File,
            train_base: None,
            adapters: Vec::new(),
            vocabulary: None,
            heads: Heads::Tokens,
        };
        let model = match mode {
            GateMode::Hidden | GateMode::HiddenAverage => Some(Model::load(&base.folder, options)?),
            _ => None,
        };
        Ok(Self { base, mode, tokenizer, model })
    }

    /// Returns the direction of an expert in every layer: that of its prompts, without that of its negative prompts.
    fn direction(&self, source: &ExpertSource) -> Result<Directions> {
        let mut directions = self.of_prompts(&source.positive)?;
        if !source.negative.is_empty() {
            let others = self.of_prompts(&source.negative)?;
            for (direction, other) in directions.iter_mut().zip(others) {
                direction.iter_mut().zip(other).for_each(|(entry, other)| *entry -= other);
            }
        }
        directions.iter_mut().for_each(|direction| normalise(direction));
        Ok(directions)
    }

    /// Encodes a prompt, which begins with the token that begins a text. Fails if it has no token.
    fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let begin = self.tokenizer.bos().and_then(|bos| self.tokenizer.token(bos)).unwrap_or_default();
        let ids = self.tokenizer.encode(&format!("{begin}{prompt}"))?;
        self.tokenizer.check_embedded(&ids)?;
        match ids.is_empty() {
            false => Ok(ids),
            true => Err(Error::user(format!("the prompt `{prompt}` has no token")).hint("write a text, or remove it")),
        }
    }

    fn of_prompts(&self, prompts: &[String]) -> Result<Directions> {
        let encoded = prompts.iter().map(|prompt| self.encode(prompt)).collect::<Result<Vec<_>>>()?;
        match &self.model {
            Some(model) => self.of_hidden_states(model, &encoded),
            None => self.of_embeddings(&encoded),
        }
    }

    /// Returns the mean over the prompts of the state before each layer: of their last token, or the mean of their tokens.
    fn of_hidden_states(&self, model: &Model, prompts: &[Vec<u32>]) -> Result<Directions> {
        let layers = self.base.config.num_hidden_layers as usize;
        let mut sums = vec![vec![0.0; self.base.config.hidden_size as usize]; layers];
        for ids in prompts {
            let states = model.hidden_states(&Tokens::pack(&[ids], Device::Cpu))?;
            for (sum, state) in sums.iter_mut().zip(&states) {
                let state = match self.mode {
                    GateMode::HiddenAverage => state.mean_dim([0i64].as_slice(), false, Kind::Double),
                    _ => state.get(-1).to_kind(Kind::Double),
                };
                let state =
                    Vec::<f64>::try_from(state.contiguous()).map_err(|e| Error::bug(format!("a hidden state: {e}")))?;
                sum.iter_mut().zip(state).for_each(|(sum, entry)| *sum += entry / prompts.len() as f64);
            }
        }
        Ok(sums)
    }

    /// Returns the direction of the sum of the embeddings of all tokens, for every layer.
    fn of_embeddings(&self, prompts: &[Vec<u32>]) -> Result<Directions> {
        let name = self.base.config.family().embedding;
        let reader = self.base.weights.entry_reader(name).ok_or_else(|| Error::bug(format!("no tensor `{name}`")))?;
        let width = self.base.config.hidden_size as usize;
        let (mut sum, mut row) = (vec![0.0; width], vec![0.0f32; width]);
        for id in prompts.iter().flatten() {
            read_entries(&reader, *id as usize * width, &mut row)?;
            sum.iter_mut().zip(&row).for_each(|(sum, entry)| *sum += f64::from(*entry));
        }
        normalise(&mut sum);
        Ok(vec![sum; self.base.config.num_hidden_layers as usize])
    }
}

/// Divides a direction by its norm.
fn normalise(direction: &mut [f64]) {
    let norm = direction.iter().map(|x| x * x).sum::<f64>().sqrt().max(SMALLEST_NORM);
    direction.iter_mut().for_each(|entry| *entry /= norm);
}
