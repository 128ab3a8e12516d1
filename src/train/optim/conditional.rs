//! Updates parameters one after the other, or not at all if a number on their device says so.
//!
//! Whether a step is finite is known on a GPU before its update runs, but on the host only afterwards. So the update
//! runs in any case, and a selection on the GPU then keeps either the new or the old numbers. Small parameters, such as
//! those of adapters, are selected together, so that the launches do not grow with their number.

use super::rule::ParameterUpdate;
use crate::error::Result;
use crate::native;
use tch::{Kind, Tensor};

/// Numbers that are selected at a time, of one large or of several small parameters.
const TOGETHER: i64 = 1 << 22;

/// Runs `update`, which changes a parameter and its state in place, for each of `slots`. If `skip`, a float32 scalar on
/// their device, is 1, all of them have their old bits afterwards, even if `update` made them NaN.
pub fn update_each<'a, 's: 'a>(
    slots: impl IntoIterator<Item = &'a ParameterUpdate<'s>>,
    skip: Option<&Tensor>,
    update: impl Fn(&ParameterUpdate),
) -> Result<()> {
    let Some(skip) = skip else {
        slots.into_iter().for_each(update);
        return Ok(());
    };
    let skip = skip.to_kind(Kind::Bool);
    for group in groups(slots.into_iter().collect(), |s| s.form.numel()) {
        let tensors = group.iter().flat_map(|s| std::iter::once(&s.param).chain(s.state)).map(Tensor::shallow_clone);
        let lists = groups(tensors.collect(), |t: &Tensor| t.numel() as i64);
        let flat = |list: &[Tensor]| list.iter().map(|t| t.reshape([-1])).collect::<Vec<_>>();
        let before: Vec<Tensor> = lists.iter().map(|list| Tensor::cat(&flat(list), 0)).collect();
        group.into_iter().for_each(&update);
        for (list, before) in lists.iter().zip(before) {
            let after = match list.as_slice() {
                [one] => one.reshape([-1]),
                several => Tensor::cat(&flat(several), 0),
            };
            let chosen = before.where_self(&skip, &after);
            let sizes: Vec<i64> = list.iter().map(|t| t.numel() as i64).collect();
            let parts = chosen.split_with_sizes(&sizes, 0);
            let parts: Vec<Tensor> = parts.iter().zip(list).map(|(part, t)| part.view(t.size().as_slice())).collect();
            native::copy_all(list, &parts)?;
        }
    }
    Ok(())
}

/// Splits a list into groups of consecutive items that together have at most [`TOGETHER`] numbers; an item that has more
/// is alone.
fn groups<T>(items: Vec<T>, numbers: impl Fn(&T) -> i64) -> Vec<Vec<T>> {
    let (mut groups, mut room): (Vec<Vec<T>>, i64) = (Vec::new(), 0);
    for item in items {
        let n = numbers(&item);
        if groups.is_empty() || room < n {
            groups.push(Vec::new());
            room = TOGETHER;
        }
        room -= n;
        groups.last_mut().expect("just made").push(item);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::LayerKind;
    use crate::train::optim::ParameterInfo;
    use tch::Device;

    /// Parameters of several groups, one of them larger than a group, each with a state of another shape.
    #[test]
    fn all_parameters_are_updated_or_none() {
        let sizes = [3, 70_000, TOGETHER + 5, 1, TOGETHER - 70_001, 9];
        let form = |n| ParameterInfo { shape: vec![n], layer: LayerKind::Linear, adapter: false, transposed: false };
        let forms: Vec<ParameterInfo> = sizes.into_iter().map(form).collect();
        let states: Vec<Vec<Tensor>> = sizes.iter().map(|n| vec![Tensor::arange(*n % 7 + 1, options())]).collect();
        let params: Vec<Tensor> = sizes.iter().map(|n| Tensor::arange(*n, options())).collect();
        let slots: Vec<ParameterUpdate> = (forms.iter().zip(&params).zip(&states))
            .map(|((form, p), state)| ParameterUpdate { form, param: p.shallow_clone(), grad: p.zeros_like(), state })
            .collect();
        let update = |s: &ParameterUpdate| {
            let _ = s.param.shallow_clone().fill_(f64::NAN);
            let _ = s.state[0].shallow_clone().fill_(4.0);
        };
        update_each(&slots, Some(&Tensor::from(1.0f32)), update).unwrap();
        for (p, state) in params.iter().zip(&states) {
            assert!(p.equal(&p.arange_like()) && state[0].equal(&state[0].arange_like()), "{:?}", p.size());
        }
        update_each(&slots, Some(&Tensor::from(0.0f32)), update).unwrap();
        for (p, state) in params.iter().zip(&states) {
            let all = |t: Tensor| t.all().int64_value(&[]) == 1;
            assert!(all(p.isnan()) && all(state[0].eq(4.0)), "{:?}", p.size());
        }
    }

    fn options() -> (Kind, Device) {
        (Kind::Float, Device::Cpu)
    }

    trait ArangeLike {
        fn arange_like(&self) -> Tensor;
    }

    impl ArangeLike for Tensor {
        fn arange_like(&self) -> Tensor {
            Tensor::arange(self.numel() as i64, options())
        }
    }
}
