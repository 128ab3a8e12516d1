//! The section of `merge.html` on a search for weights: curves of losses, weights by layer, a map of weights by module. Of
//! components it shows the means of their modules.

use crate::models::layer_number;
use crate::runs::page::chart::{Chart, Series, SeriesStyle};
use crate::runs::page::escape::{named, plain};
use crate::runs::page::plot::canvas;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// A curve of a search for weights: a loss over values in order.
#[derive(Clone)]
pub struct SearchCurve {
    /// Its name.
    pub name: String,
    /// (place, loss)
    pub points: Vec<(f64, f64)>,
    /// True for the curve with the result: it is drawn in front of the others.
    pub marked: bool,
}

/// Weights by adapter and group of tensors.
#[derive(Clone)]
pub struct GroupWeights {
    /// Names of the adapters.
    pub adapters: Vec<String>,
    /// Numbers of layers, or names of modules.
    pub groups: Vec<String>,
    /// (adapter, group); `None` where an adapter changes nothing.
    pub weights: Vec<Vec<Option<f64>>>,
}

/// What a search for weights found.
#[derive(Clone)]
pub struct SearchPicture {
    /// What the losses are of.
    pub title: String,
    /// What the horizontal axis counts.
    pub over: &'static str,
    /// The curves of losses.
    pub curves: Vec<SearchCurve>,
    /// The loss of the base alone.
    pub base_loss: f64,
    /// What was tried, `trials` or `steps`, under a row of titles.
    pub table: (&'static str, Vec<Vec<String>>),
    /// The best of them, counted from 0, if one of them is the result.
    pub best: Option<usize>,
    /// The weights, if they were trained by layer or module.
    pub weights: Option<GroupWeights>,
}

impl SearchPicture {
    /// Returns the section without its title.
    pub(super) fn section(&self) -> Markup {
        html! {
            div class="charts" {
                (self.losses().figure())
                @if let Some(weights) = &self.weights { (weights.by_layer().figure()) }
            }
            @if let Some(weights) = self.weights.as_ref().filter(|weights| weights.modules().next().is_some()) {
                div class="charts" style="margin-top:12px" {
                    @for adapter in 0..weights.adapters.len() { (weights.map(adapter)) }
                }
            }
            (details(&self.table, self.best))
            @if let Some(weights) = &self.weights { (details(&weights.table(), None)) }
        }
    }

    fn losses(&self) -> Chart<'_> {
        let others = self.curves.iter().filter(|curve| !curve.marked).count();
        let unmarked = if others < 3 { SeriesStyle::Dots } else { SeriesStyle::Faint };
        let series = |(i, curve): (usize, &SearchCurve)| Series {
            name: curve.name.clone(),
            colour: if curve.marked { "train" } else { ["valid", "other"][i % 2] },
            look: if curve.marked { SeriesStyle::Dots } else { unmarked },
            points: curve.points.clone(),
        };
        // The first is at the back.
        let behind = self.curves.iter().filter(|curve| !curve.marked).enumerate();
        let all = behind.chain(self.curves.iter().filter(|curve| curve.marked).enumerate());
        Chart {
            title: "Held-out loss".into(),
            note: self.title.clone(),
            series: all.map(series).collect(),
            over: self.over,
            format: |x| format!("{x:.4}"),
            guide: Some((self.base_loss, "the base alone")),
            resumed: &[],
            skipped: &[],
            log_above: f64::INFINITY,
            from_zero: false,
        }
    }
}

/// Returns a table that opens on a click. `best`: the row that is emphasised.
fn details((noun, table): &(&str, Vec<Vec<String>>), best: Option<usize>) -> Markup {
    let [titles, rows @ ..] = &table[..] else { return Markup::default() };
    html! {
        details { summary { (rows.len()) " " (noun) }
        div class="card scroll" { table {
            tr { @for title in titles { th { (plain(title)) } } }
            @for (i, row) in rows.iter().enumerate() {
                tr class=[(best == Some(i)).then_some("best")] { @for cell in row { td { (named(cell)) } } }
            }
        } } }
    }
}

impl GroupWeights {
    /// Returns the mean weight of each module, whose groups are components: the name of its weight, and a number.
    pub fn means_of_components(&self) -> Self {
        let module = |group: &str| group.rsplit_once(' ').map_or(group, |(tensor, _)| tensor).to_string();
        let mut groups: Vec<String> = self.groups.iter().map(|group| module(group)).collect();
        groups.dedup();
        let mean = |weights: &Vec<Option<f64>>, name: &String| {
            let all = self.groups.iter().zip(weights).filter(|(group, _)| module(group) == *name);
            let own: Vec<f64> = all.filter_map(|(_, weight)| *weight).collect();
            (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
        };
        let weights = self.weights.iter().map(|list| groups.iter().map(|name| mean(list, name)).collect()).collect();
        let shown = groups.iter().map(|name| name.strip_suffix(".weight").unwrap_or(name).to_string()).collect();
        Self { adapters: self.adapters.clone(), groups: shown, weights }
    }

    /// Returns the mean weight of an adapter in each layer, in order.
    pub fn means_by_layer(&self, adapter: usize) -> Vec<(usize, f64)> {
        let layer = |group: &str| group.parse().ok().or_else(|| layer_number(group));
        let own = || self.groups.iter().zip(&self.weights[adapter]).filter_map(|(g, w)| Some((layer(g)?, (*w)?)));
        let layers: BTreeSet<usize> = own().map(|(layer, _)| layer).collect();
        let mean = |layer: usize| {
            let weights: Vec<f64> = own().filter(|(l, _)| *l == layer).map(|(_, w)| w).collect();
            (layer, weights.iter().sum::<f64>() / weights.len() as f64)
        };
        layers.into_iter().map(mean).collect()
    }

    fn by_layer(&self) -> Chart<'_> {
        let line = |(i, name): (usize, &String)| Series {
            name: name.clone(),
            colour: ["valid", "other", "train"][i % 3],
            look: if i < 3 { SeriesStyle::Dots } else { SeriesStyle::Faint },
            points: self.means_by_layer(i).into_iter().map(|(layer, w)| (layer as f64, w)).collect(),
        };
        let mean = if self.modules().next().is_some() { "mean of the layer's modules, " } else { "" };
        Chart {
            title: "Weights".into(),
            note: format!("{mean}over layers"),
            series: self.adapters.iter().enumerate().map(line).collect(),
            over: "layer",
            format: |x| format!("{x:.2}"),
            guide: None,
            resumed: &[],
            skipped: &[],
            log_above: f64::INFINITY,
            from_zero: true,
        }
    }

    /// Returns layer, name within the layer, and position of each module that is in a layer.
    fn modules(&self) -> impl Iterator<Item = (usize, &str, usize)> {
        self.groups.iter().enumerate().filter_map(|(i, group)| {
            let layer = layer_number(group)?;
            let (_, within) = group.split_once(&format!(".{layer}."))?;
            Some((layer, within, i))
        })
    }

    /// Draws the weights of an adapter as a map: a row for each module of a layer, a column for each layer. The strength of the
    /// colour is the size of the weight, as a share of the largest of all adapters; negative ones have another colour.
    fn map(&self, adapter: usize) -> Markup {
        let mut rows: Vec<&str> = Vec::new();
        self.modules().for_each(|(_, name, _)| {
            if !rows.contains(&name) {
                rows.push(name)
            }
        });
        let columns = self.modules().map(|(layer, ..)| layer + 1).max().unwrap_or(1);
        let largest = self.weights.iter().flatten().flatten().map(|w| w.abs()).fold(1e-9, f64::max);
        let (width, height) = (1000.0 / columns as f64, 1000.0 / rows.len().max(1) as f64);
        let cell = |layer: usize, name: &str, weight: f64| {
            let row = rows.iter().position(|row| *row == name).unwrap_or_default();
            let colour = if weight < 0.0 { "valid" } else { "train" };
            let style = format!("fill:var(--{colour});fill-opacity:{:.3}", weight.abs() / largest);
            html! {
                rect x=(format!("{:.1}", layer as f64 * width)) y=(format!("{:.1}", row as f64 * height))
                    width=(format!("{width:.1}")) height=(format!("{height:.1}")) style=(style) {
                    title { (plain(&format!("layer {layer}, {name}: {weight:.3}"))) }
                }
            }
        };
        let name = format!("Weights of {}", self.adapters[adapter]);
        let svg = html! {
            @for (layer, name, i) in self.modules() {
                @if let Some(weight) = self.weights[adapter][i] { (cell(layer, name, weight)) }
            }
        };
        let middle = |i: usize, size: f64| (i as f64 + 0.5) * size / 10.0;
        html! {
            figure class="chart" {
                figcaption {
                    b { (named(&name)) }
                    span class="note" { (format!("by module over layers; full colour: {largest:.2}")) }
                    @if self.weights.iter().flatten().flatten().any(|w| *w < 0.0) {
                        span class="legend" { span class="key valid" { "negative" } }
                    }
                }
                div class="plot" style=(format!("margin-left:132px;height:{}px", 24 * rows.len().max(1))) {
                    (canvas(&name, svg))
                    @for (i, row) in rows.iter().enumerate() {
                        span class="y" style=(format!("top:{:.2}%", middle(i, height))) { (plain(row)) }
                    }
                    @for layer in (0..columns).step_by(columns.div_ceil(12)) {
                        span class="x" style=(format!("left:{:.2}%", middle(layer, width))) { (layer) }
                    }
                }
            }
        }
    }

    /// Returns all weights, a row for each group under a row of titles.
    fn table(&self) -> (&'static str, Vec<Vec<String>>) {
        let shown = |weights: &Vec<Option<f64>>, i: usize| weights[i].map_or("-".into(), |w| format!("{w:.3}"));
        let titles = std::iter::once("tensors of".to_string()).chain(self.adapters.iter().cloned());
        let mut table: Vec<Vec<String>> = vec![titles.collect()];
        table.extend(self.groups.iter().enumerate().map(|(i, group)| {
            std::iter::once(group.clone())
                .chain(self.weights.iter().map(|weights| shown(weights, i)))
                .collect::<Vec<_>>()
        }));
        ("weights of each adapter", table)
    }
}
