//! Computes a function of the rows of a layer's input, some rows at a time, so that what is inside the function never exists for
//! all rows.
//!
//! The backward computes each tile of rows again (Chen et al. 2016, arXiv 1604.06174, within a layer and along the rows). The
//! gradients of trained parameters are added to the float32 leaves tile by tile; that of the input has its rows side by side.

use super::autograd::requiring_grad;
use super::awaited_update::PausedUpdates;
use super::chunked::chunks;
use super::layer_input::LayerInput;
use crate::native;
use tch::Tensor;

/// Computes `f` of the rows of `input` (T, D) and of tensors beside it (T, …), `tile` rows at a time: (T, D'). A row of the result
/// may depend on the same rows only. If gradients are recorded, the backward runs `f` again; with dropout from the same state of
/// the random generator. Rows that make one tile are computed by one call of `f`, as without tiles.
pub fn by_tiles(
    input: LayerInput,
    beside: &[&Tensor],
    tile: Option<i64>,
    f: impl Fn(LayerInput, &[Tensor]) -> Tensor + 'static,
) -> Tensor {
    let rows = input.x.size()[0];
    let Some(tile) = tile.filter(|tile| *tile < rows) else {
        let beside: Vec<Tensor> = beside.iter().map(|t| t.shallow_clone()).collect();
        return f(input, &beside);
    };
    let _paused = PausedUpdates::begin();
    let device = input.x.device();
    let state = move || native::rng_state(device).expect("a device has a generator");
    let recording = native::grad_enabled();
    let (mut states, mut out, mut learns) = (Vec::new(), None, false);
    for (from, count) in chunks(rows, tile) {
        if recording {
            states.push(state());
        }
        let beside: Vec<Tensor> = beside.iter().map(|t| t.narrow(0, from, count)).collect();
        let y = f(LayerInput::kept(&input.x.narrow(0, from, count)), &beside);
        // The graph of the tile ends here; it only says whether there is anything to be learnt.
        learns |= recording && y.requires_grad();
        let y = y.detach();
        let all = out.get_or_insert_with(|| {
            let mut shape = y.size();
            shape[0] = rows;
            Tensor::empty(&shape, (y.kind(), device))
        });
        all.narrow(0, from, count).copy_(&y);
    }
    let out = out.expect("a tile");
    if !learns {
        return out;
    }
    let needs_input = input.x.requires_grad();
    let attached: Vec<Tensor> =
        std::iter::once(requiring_grad(&input.x)).chain(beside.iter().map(|t| t.shallow_clone())).collect();
    let (rows_again, kept) = (input.rows_again(), beside.iter().map(|t| t.detach()).collect::<Vec<_>>());
    let needs: Vec<bool> = beside.iter().map(|t| t.requires_grad()).collect();
    let (shape, kind, count_of_inputs) = (input.x.size(), input.x.kind(), attached.len());
    drop(input);
    native::attach_backward(&attached.iter().collect::<Vec<_>>(), &[&out], move |grads| {
        let Some(g) = &grads[0] else { return (0..count_of_inputs).map(|_| None).collect() };
        let now = state();
        let g_x = needs_input.then(|| Tensor::empty(&shape, (kind, device)));
        let mut g_beside: Vec<Vec<Tensor>> = kept.iter().map(|_| Vec::new()).collect();
        for ((from, count), rng) in chunks(rows, tile).zip(&states) {
            native::set_rng_state(device, rng).expect("a state of this generator");
            let x = rows_again(from, count).detach().set_requires_grad(needs_input);
            let leaf = |(t, needs): (&Tensor, &bool)| t.narrow(0, from, count).detach().set_requires_grad(*needs);
            let beside: Vec<Tensor> = kept.iter().zip(&needs).map(leaf).collect();
            let y = tch::with_grad(|| f(LayerInput::kept(&x), &beside));
            if y.requires_grad() {
                native::backward(&[&y], &[&g.narrow(0, from, count).contiguous()]).expect("backward of one tile");
            }
            if let Some(g_x) = &g_x {
                g_x.narrow(0, from, count).copy_(&gradient(&x));
            }
            for ((g, t), _) in g_beside.iter_mut().zip(&beside).zip(&needs).filter(|(_, needs)| **needs) {
                g.push(gradient(t));
            }
        }
        native::set_rng_state(device, &now).expect("a state of this generator");
        let joined = g_beside.into_iter().map(|parts| (!parts.is_empty()).then(|| Tensor::cat(&parts, 0)));
        std::iter::once(g_x).chain(joined).collect()
    });
    out
}

/// Returns the gradient of a leaf; zeros if nothing depended on it.
fn gradient(leaf: &Tensor) -> Tensor {
    let g = leaf.grad();
    if g.defined() { g } else { leaf.zeros_like() }
}
