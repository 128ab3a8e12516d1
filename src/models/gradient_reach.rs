//! How much the loss of a recurrent model at one token depends on its states at earlier tokens.

use super::model::Model;
use crate::error::{Error, Result};
use crate::native::upload;
use crate::nn::{GradientReach, RecurrenceOptions, Tokens};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// What the names of the metrics of [`Model::gradient_by_distance`] begin with; the distance in tokens follows.
pub const STATE_GRADIENT: &str = "state_gradient_";

impl Model {
    /// Sets over how many tokens gradients flow back in recurrent layers, for all later calls of `learn`; `None`: to the first
    /// of a sequence.
    pub fn set_truncation(&self, truncate: Option<i64>) {
        self.recurrence.borrow_mut().truncate = truncate;
    }

    /// Measures how much a loss depends on states d = 1, 2, 4, … tokens before its own: (d, norm of d loss / d state), where
    /// the loss is that of the last token of a segment, given the tokens before it, and the state that of all layers (of an
    /// LSTM h and c). The norms are means over the segments that reach back so far. Empty without recurrent layers.
    ///
    /// Gradients flow to the beginning of each segment, dropout is off, and the parameters' gradients stay as they are.
    pub fn gradient_by_distance(&self, tokens: &Tokens) -> Result<Vec<(i64, f64)>> {
        if self.recurrence().is_none() {
            return Ok(Vec::new());
        }
        self.check(tokens, &[])?;
        let reach = Rc::new(GradientReach::default());
        let options = RecurrenceOptions { truncate: None, reach: Some(reach.clone()) };
        let before = self.recurrence.replace(options);
        let measured = self.backward_of_last_tokens(tokens);
        self.recurrence.replace(before);
        measured.map(|()| reach.by_distance())
    }

    /// Runs the backward of the sum of the losses at the last token of each segment, down to the embedded tokens.
    fn backward_of_last_tokens(&self, tokens: &Tokens) -> Result<()> {
        let mut end = 0;
        let ends = tokens.segments.lengths.iter().map(|n| {
            end += n;
            (end - 2, *n)
        });
        let at: Vec<i64> = ends.filter(|(_, n)| *n >= 2).map(|(row, _)| row).collect();
        if at.is_empty() {
            return Ok(());
        }
        let [at] = upload([Tensor::from_slice(&at)], self.device());
        let targets = tokens.ids.index_select(0, &(&at + 1));
        let row = self.whole_row(tokens);
        let embedded = self.embed_plain(&row).detach().set_requires_grad(true);
        let mut pass = self.start_pass(&row, &self.exposed_layers());
        let x = (0..self.depth()).fold(embedded.shallow_clone(), |x, i| self.decoder.layer(i, &x, &mut pass));
        // One row of logits for each segment. A trained head's own loss would add to its gradient.
        let logits = self.output(pass.real_rows(&x), Rc::default()).logits(&at);
        let scores = logits.log_softmax(-1, Kind::Float).gather(-1, &targets.unsqueeze(-1), false);
        let loss = -scores.sum(Kind::Float);
        // Stops at the embedded tokens, so that no parameter gets a gradient.
        let run = Tensor::f_run_backward(&[&loss], &[&embedded], false, false);
        run.map(drop).map_err(|e| Error::bug(format!("gradients of states: {e}")))
    }
}

/// Returns the name of the metric of a distance in tokens.
pub fn metric_name(distance: i64) -> String {
    format!("{STATE_GRADIENT}{distance}")
}
