//! The input of linear layers, and what their backward keeps of it.

use crate::native;
use std::cell::Cell;
use std::rc::Rc;
use tch::{Kind, Tensor};

thread_local! {
    static KEEPS: Cell<bool> = const { Cell::new(false) };
}

/// While a value of this type exists, inputs that are computed on this thread are kept for the backward, also those that it could
/// recompute. That takes more memory and gives the same bits.
pub struct KeptInputs(bool);

impl KeptInputs {
    /// Keeps inputs until the value is dropped.
    pub fn begin() -> Self {
        Self(KEEPS.replace(true))
    }
}

impl Drop for KeptInputs {
    fn drop(&mut self) {
        KEEPS.set(self.0);
    }
}

/// Returns true while a [`KeptInputs`] exists on this thread.
pub(super) fn keeps() -> bool {
    KEEPS.get()
}

/// Returns true if an input should be recomputed in the backward: gradients are recorded, and inputs are not kept.
fn recomputes() -> bool {
    native::grad_enabled() && !keeps()
}

/// The input of linear layers. Instead of keeping it for the backward, it may be recomputed there from tensors that
/// are kept anyway.
pub struct LayerInput {
    /// (T, D) the input's values.
    pub x: Tensor,
    pub(super) recompute: Option<Rc<dyn Fn() -> Tensor>>,
    /// Recomputes the rows with these indices (n), without the others.
    recompute_rows: Option<Rc<dyn Fn(&Tensor) -> Tensor>>,
}

impl LayerInput {
    /// Returns an input that is kept for the backward.
    pub fn kept(x: &Tensor) -> Self {
        Self { x: x.shallow_clone(), recompute: None, recompute_rows: None }
    }

    /// Returns the same input as another tensor with the same values.
    pub(super) fn with_values(self, x: Tensor) -> Self {
        Self { x, ..self }
    }

    /// Returns another handle to the same input.
    pub fn shallow_clone(&self) -> Self {
        let (recompute, recompute_rows) = (self.recompute.clone(), self.recompute_rows.clone());
        Self { x: self.x.shallow_clone(), recompute, recompute_rows }
    }

    /// Returns an input that the backward recomputes instead of keeping. `again` returns a closure that computes the
    /// same tensor, bit for bit, and that must not hold a graph; it is called only if gradients are being recorded.
    pub fn recomputable<F: Fn() -> Tensor + 'static>(x: Tensor, again: impl FnOnce() -> F) -> Self {
        let again = recomputes().then(|| Rc::new(again()) as Rc<dyn Fn() -> Tensor>);
        Self { x, recompute: again, recompute_rows: None }
    }

    /// Does the same for an input whose rows are computed from those of `source` (T, …), each by itself: `again` returns a
    /// closure that computes them for any rows. A layer that reads a part of the rows then recomputes no others.
    pub fn row_wise<F: Fn(&Tensor) -> Tensor + 'static>(x: Tensor, source: &Tensor, again: impl FnOnce() -> F) -> Self {
        if !recomputes() {
            return Self { x, recompute: None, recompute_rows: None };
        }
        let (kept, of_rows) = (source.detach(), Rc::new(again()));
        let (all, of_all) = (kept.shallow_clone(), of_rows.clone());
        Self {
            x,
            recompute: Some(Rc::new(move || of_all(&all))),
            recompute_rows: Some(Rc::new(move |rows| of_rows(&kept.index_select(0, rows)))),
        }
    }

    /// Returns a closure that returns the input's values in the backward, without a graph.
    pub(super) fn again(&self) -> Rc<dyn Fn() -> Tensor> {
        self.recompute.clone().unwrap_or_else(|| {
            let kept = self.x.detach();
            Rc::new(move || kept.shallow_clone())
        })
    }

    /// Returns a closure that returns rows in the backward, without a graph, given the first and their number. It recomputes them
    /// if that takes no other rows; else the input is kept.
    pub(super) fn rows_again(&self) -> Rc<dyn Fn(i64, i64) -> Tensor> {
        if let Some(of_rows) = self.recompute_rows.clone() {
            let device = self.x.device();
            return Rc::new(move |from, count| {
                of_rows(&Tensor::arange_start(from, from + count, (Kind::Int64, device)))
            });
        }
        let kept = self.x.detach();
        Rc::new(move |from, count| kept.narrow(0, from, count))
    }

    /// Returns the input that `f` makes of this one, row by row. The result is recomputed from this one.
    pub(super) fn map_rows(&self, f: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        let x = f(&self.x);
        if !native::grad_enabled() {
            return Self { x, recompute: None, recompute_rows: None };
        }
        let (again, f) = (self.again(), Rc::new(f));
        let of_rows = self.recompute_rows.clone().map(|rows_again| {
            let f = f.clone();
            Rc::new(move |rows: &Tensor| f(&rows_again(rows))) as Rc<dyn Fn(&Tensor) -> Tensor>
        });
        Self { x, recompute: Some(Rc::new(move || f(&again()))), recompute_rows: of_rows }
    }

    /// Returns the rows with the indices `rows` (n) as an input that is recomputed from this one; `x` (n, D) are their values.
    pub(super) fn selected(&self, x: Tensor, rows: Tensor) -> Self {
        if !native::grad_enabled() {
            return Self { x, recompute: None, recompute_rows: None };
        }
        let again: Rc<dyn Fn() -> Tensor> = match self.recompute_rows.clone() {
            Some(rows_again) => Rc::new(move || rows_again(&rows)),
            None => {
                let all = self.again();
                Rc::new(move || all().index_select(0, &rows))
            }
        };
        Self { x, recompute: Some(again), recompute_rows: None }
    }
}

impl From<&Tensor> for LayerInput {
    fn from(x: &Tensor) -> Self {
        Self::kept(x)
    }
}
