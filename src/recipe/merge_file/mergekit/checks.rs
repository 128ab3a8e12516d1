//! What a method cannot do with the models of a slice.

use super::FileReader;
use crate::merging::models::{BasePolicy, ModelMethod, ParameterScope};
use crate::recipe::merge_file::models::{OutputSlice, Settings};
use crate::recipe::mistakes::SourceSpan;

impl FileReader<'_, '_> {
    /// Notes that a slice has too few or too many models for a method.
    pub(super) fn check_count(&mut self, method: ModelMethod, slice: &OutputSlice, at: SourceSpan) {
        let name = method.name();
        let (least, most) = method.models();
        // A base that is optional does not count.
        let counted = match method.base() {
            BasePolicy::Optional => slice.sources.iter().filter(|s| Some(s.model) != slice.base).count(),
            _ => slice.sources.len(),
        };
        if counted < least || counted > most {
            let wanted = match (least, most) {
                (least, most) if least == most => format!("{least}"),
                (least, _) => format!("at least {least}"),
            };
            let included = if method.base() == BasePolicy::Required { ", the base included" } else { "" };
            let why = format!("`{name}` merges {wanted} models{included}, found {counted}");
            let hint = match method {
                ModelMethod::Passthrough => "leave out `base_model`, and list one model for each slice",
                ModelMethod::Slerp | ModelMethod::Nuslerp => "multislerp and karcher take more than two",
                _ => "list more models",
            };
            self.reader.wrong::<()>(at, why, hint);
        }
    }

    /// Notes what a method cannot do with a slice: no base, a parameter that is not given.
    pub(super) fn check_slice(&mut self, method: ModelMethod, slice: &OutputSlice, all: &Settings, at: SourceSpan) {
        let name = method.name();
        let base_is_there = slice.base.is_some_and(|base| slice.sources.iter().any(|s| s.model == base));
        match (method.base(), slice.base) {
            (BasePolicy::Required, None) => {
                self.reader.wrong::<()>(at, format!("`{name}` needs `base_model`"), "e.g. `base_model: models/base`");
            }
            (BasePolicy::Required | BasePolicy::Optional, Some(base)) if !base_is_there => {
                let why = format!("the base {} is not among the `sources` of a slice", self.models[base].display());
                self.reader.wrong::<()>(
                    at,
                    why,
                    "list it there with its layers, or give the slice a `base_model` of its own",
                );
            }
            _ => {}
        }
        for parameter in method.parameters().iter().filter(|parameter| parameter.required) {
            let above = [&slice.parameters, all].iter().any(|settings| settings.contains_key(parameter.name));
            let missing: Vec<String> = match parameter.scope {
                _ if above => Vec::new(),
                ParameterScope::Shared => vec![String::new()],
                scope => slice
                    .sources
                    .iter()
                    .filter(|s| scope == ParameterScope::Input || Some(s.model) != slice.base)
                    .filter(|s| !s.parameters.contains_key(parameter.name))
                    .map(|s| format!(" of {}", self.models[s.model].display()))
                    .collect(),
            };
            for whose in missing {
                let hint = format!("e.g. `parameters: {{{}: 0.5}}`, there or at the top", parameter.name);
                self.reader.wrong::<()>(at, format!("`{name}` needs `{}`{whose}", parameter.name), hint);
            }
        }
    }
}
