//! The value of a parameter over layers and tensor names.

/// A parameter as a file gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum LayeredValue {
    /// One number for all.
    Value(f64),
    /// Numbers at equal distances from the first layer to the last; between two of them it is interpolated.
    Gradient(Vec<f64>),
    /// The first case whose filter fits the tensor's name.
    Cases(Vec<FilteredValue>),
}

/// A value for some tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct FilteredValue {
    /// Part of the tensor's name; `None` or `*`: every tensor.
    pub filter: Option<String>,
    /// The value.
    pub value: LayeredValue,
}

impl LayeredValue {
    /// Returns the value for a tensor; `None` if no case fits. `depth`: 0 for the first layer, 1 for the last. A `discrete`
    /// value is not interpolated: the last number that was reached counts.
    pub fn at(&self, name: &str, depth: f64, discrete: bool) -> Option<f64> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Gradient(values) => {
                let last = values.len().checked_sub(1)?;
                let place = depth * last as f64;
                let below = place as usize;
                if discrete {
                    return Some(values[below]);
                }
                let share = place - below as f64;
                Some((1.0 - share) * values[below] + share * values[(below + 1).min(last)])
            }
            Self::Cases(cases) => cases
                .iter()
                .find(|case| case.filter.as_deref().is_none_or(|filter| filter == "*" || name.contains(filter)))
                .and_then(|case| case.value.at(name, depth, discrete)),
        }
    }

    /// Returns every number in it.
    pub fn numbers(&self) -> Vec<f64> {
        match self {
            Self::Value(value) => vec![*value],
            Self::Gradient(values) => values.clone(),
            Self::Cases(cases) => cases.iter().flat_map(|case| case.value.numbers()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_interpolated_over_layers_and_chosen_by_name() {
        let gradient = LayeredValue::Gradient(vec![0.0, 1.0, 0.0]);
        let at = |depth| gradient.at("x", depth, false).unwrap();
        assert_eq!([at(0.0), at(0.25), at(0.5), at(0.75), at(1.0)], [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(gradient.at("x", 0.75, true), Some(1.0));
        let case = |filter: &str, value| FilteredValue { filter: Some(filter.into()), value };
        let cases = LayeredValue::Cases(vec![case("mlp", gradient), case("attn", LayeredValue::Value(0.3))]);
        assert_eq!(cases.at("model.layers.0.mlp.up_proj.weight", 0.5, false), Some(1.0));
        assert_eq!(cases.at("model.layers.0.self_attn.q_proj.weight", 0.5, false), Some(0.3));
        assert_eq!(cases.at("model.norm.weight", 0.5, false), None);
        let all = LayeredValue::Cases(vec![FilteredValue { filter: None, value: LayeredValue::Value(2.0) }]);
        assert_eq!((all.at("x", 0.0, false), all.numbers()), (Some(2.0), vec![2.0]));
    }
}
