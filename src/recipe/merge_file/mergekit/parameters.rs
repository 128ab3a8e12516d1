//! Values of a method's parameters: numbers, gradients over layers, and cases by tensor names.

use super::FileReader;
use crate::merging::models::{FilteredValue, LayeredValue, ModelMethod, ParameterKind, ParameterSpec};
use crate::recipe::merge_file::models::Settings;
use crate::recipe::repair::describe_value;
use crate::recipe::suggest::suggest_choice;
use crate::recipe::tree::{Node, NodeKind, Scalar, parse_scalar};

impl FileReader<'_, '_> {
    /// Reads `parameters` of a map.
    pub(super) fn parameters(&mut self, holder: &Node) -> Settings {
        let Some(node) = holder.get("parameters").filter(|node| !node.is_null()) else { return Settings::new() };
        let NodeKind::Map(entries) = &node.kind else {
            self.reader.expected::<()>("parameters", node, "names and values", "{weight: 0.5}");
            return Settings::new();
        };
        let mut settings = Settings::new();
        for (key, value) in entries {
            let Some(method) = self.method else { continue };
            let name = key.text.as_str();
            match method.parameter(name) {
                Some(parameter) => {
                    settings.extend(self.setting(parameter, value).map(|setting| (name.to_string(), setting)));
                    if name == "int8_mask" {
                        self.notes.push("`int8_mask` is ignored: it changes no result".into());
                    }
                }
                None if ModelMethod::ALL.iter().any(|other| other.parameter(name).is_some()) => {
                    self.notes.push(format!("`{name}` is ignored: {} has no such parameter", method.name()));
                }
                None => {
                    let known: Vec<&str> = method.parameters().iter().map(|p| p.name).collect();
                    let hint = match suggest_choice(&known, name) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("{} has {}", method.name(), known.join(", ")),
                    };
                    self.reader.wrong::<()>(key.at, format!("unknown parameter `{name}`"), hint);
                }
            }
        }
        settings
    }

    /// Reads a value, a gradient or a list of cases.
    fn setting(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<LayeredValue> {
        match &node.kind {
            NodeKind::Scalar { .. } => self.value(parameter, node).map(LayeredValue::Value),
            NodeKind::Map(_) => Some(LayeredValue::Cases(vec![self.case(parameter, node)?])),
            NodeKind::List(items) if items.is_empty() => {
                self.reader.wrong(node.at, format!("`{}` is an empty list", parameter.name), "give at least one number")
            }
            NodeKind::List(items) if items.iter().all(|item| matches!(item.kind, NodeKind::Scalar { .. })) => {
                let values: Option<Vec<f64>> = items.iter().map(|item| self.value(parameter, item)).collect();
                if parameter.kind == ParameterKind::Whole && items.len() > 1 {
                    return self.reader.expected(parameter.name, node, "one whole number", "10");
                }
                values.map(LayeredValue::Gradient)
            }
            NodeKind::List(items) => {
                let cases: Vec<Option<FilteredValue>> = items.iter().map(|item| self.case(parameter, item)).collect();
                Some(LayeredValue::Cases(cases.into_iter().collect::<Option<_>>()?))
            }
        }
    }

    fn case(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<FilteredValue> {
        let example = "[{filter: mlp, value: 0.3}, {value: 0.5}]";
        let NodeKind::Map(_) = &node.kind else {
            return self.reader.expected(parameter.name, node, "numbers, or a value for each filter", example);
        };
        self.reader.check_keys(node, &["filter", "value"], "a value for some tensors");
        let filter = match node.get("filter").filter(|filter| !filter.is_null()) {
            Some(filter) => Some(self.reader.text("filter", filter, "part of a tensor's name", "mlp")?),
            None => None,
        };
        let Some(value) = node.get("value") else {
            return self.reader.wrong(
                node.at,
                "a filter without `value`".into(),
                format!("e.g. `{}: {example}`", parameter.name),
            );
        };
        if matches!(&value.kind, NodeKind::Map(_)) {
            return self.reader.expected("value", value, "a number or a list of numbers", "0.5");
        }
        Some(FilteredValue { filter, value: self.setting(parameter, value)? })
    }

    /// Reads one value. Quoted numbers are numbers, as in mergekit.
    fn value(&mut self, parameter: &ParameterSpec, node: &Node) -> Option<f64> {
        let NodeKind::Scalar { text, .. } = &node.kind else { return None };
        let found = parse_scalar(text, true);
        let number = match found {
            Scalar::Int(n) => Some(n as f64),
            Scalar::Float(x) => Some(x).filter(|x| x.is_finite()),
            _ => None,
        };
        let (value, what, example) = match parameter.kind {
            ParameterKind::Truth => {
                let truth = match found {
                    Scalar::Bool(truth) => Some(f64::from(u8::from(truth))),
                    _ => number.filter(|n| *n == 0.0 || *n == 1.0),
                };
                (truth, "true or false", "true")
            }
            ParameterKind::Whole => (number.filter(|n| *n >= 1.0 && n.fract() == 0.0), "a whole number from 1", "10"),
            ParameterKind::Share => (number.filter(|n| (0.0..=1.0).contains(n)), "a number from 0 to 1", "0.5"),
            ParameterKind::Number => (number, "a number", "0.5"),
        };
        match value {
            Some(value) => Some(value),
            None => {
                let message = format!("`{}`: expected {what}, found {}", parameter.name, describe_value(node));
                self.reader.wrong(node.at, message, format!("e.g. `{}: {example}`", parameter.name))
            }
        }
    }
}
