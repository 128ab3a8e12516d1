//! Writes `merge.html`: the report on a merge as a self-contained page, in the style of the pages of runs.

use super::report::{GroupReport, MergeReport, MergedParts};
use super::search_section::SearchPicture;
use crate::error::Result;
use crate::fsutil::write_atomic;
use crate::merging::comparison::pairs;
use crate::runs::page::chart::{Chart, Series, SeriesStyle};
use crate::runs::page::document::document;
use crate::runs::page::escape::{named, plain};
use crate::runs::page::short;
use maud::{Markup, html};
use std::io::Write;
use std::path::Path;

/// Name of the page in the folder that a merge writes.
pub const PAGE: &str = "merge.html";

/// Writes the page. `search`: the search that found the weights, if there was one.
pub fn write(report: &MergeReport, search: Option<&SearchPicture>, path: &Path) -> Result<()> {
    let page = render(report, search);
    write_atomic(path, |file| file.write_all(page.as_bytes()))
}

/// Returns the page as HTML.
pub fn render(report: &MergeReport, search: Option<&SearchPicture>) -> String {
    let names: Vec<String> = report.parts.list().iter().map(|part| label(&part.folder)).collect();
    let title = format!("Merge of {}", names.join(", "));
    let noun = report.parts.noun();
    let norms = match &report.reference {
        Some(model) => format!("Norms are Frobenius norms of the differences from {model}."),
        None => "Norms are Frobenius norms of weighted changes.".into(),
    };
    let body = html! {
        header {
            h1 { (named(&title)) }
            p class="sub" { (plain(&report.method)) }
        }
        (tiles(report))
        section { h2 { @if noun == "model" { "Models" } @else { "Adapters" } } (parts(report)) }
        @if let Some(search) = search {
            section { h2 { "Search for weights" } (search.section()) }
        }
        section { h2 { "By layer" } div class="charts" { @for chart in charts(report) { (chart.figure()) } } }
        section { h2 { "Tensors" } (weights(report)) }
        footer { (plain(&norms)) " Cosines and signs compare changes of the same tensor." }
    };
    document(&title, &body.into_string())
}

fn percent(x: f64) -> String {
    format!("{:.1}%", 100.0 * x)
}

fn cosine(x: f64) -> String {
    format!("{x:+.2}")
}

fn tiles(report: &MergeReport) -> Markup {
    let total = &report.total;
    let tile = |name: &str, value: String, more: &str| {
        html! { div class="tile" { span { (name) } b { (plain(&value)) } small { (more) } } }
    };
    html! {
        div class="tiles" {
            (tile("tensors changed", total.tensors.to_string(), "of the base"))
            (tile("merged norm", short(total.merged_norm), "of the whole change"))
            @if let Some(conflicts) = total.sign_conflicts {
                (tile("sign conflicts", percent(conflicts), "of shared entries"))
            }
            @if let Some(rank) = total.rank { (tile("mean rank", format!("{rank:.1}"), "of the written products")) }
            @if matches!(report.parts, MergedParts::Adapters(_)) {
                (tile("energy kept", percent(total.energy_kept), "of the merged change"))
            }
        }
    }
}

/// Returns the last part of a folder.
fn label(folder: &str) -> String {
    let path = Path::new(folder);
    path.file_name().map_or_else(|| folder.to_string(), |name| name.to_string_lossy().into_owned())
}

fn parts(report: &MergeReport) -> Markup {
    let total = &report.total;
    let list = report.parts.list();
    let others = list.get(1..).unwrap_or_default();
    html! {
        div class="card scroll" { table {
            tr {
                th { (report.parts.noun()) } th class="number" { "weight" } th class="number" { "density" }
                th class="number" { "norm" } th class="number" { "cosine with merged" }
                @for other in others { th class="number" { "cosine with " (named(&label(&other.folder))) } }
            }
            @for (i, part) in list.iter().enumerate() {
                tr {
                    td class="path" { (named(&part.folder)) }
                    td class="number" { (part.weight.map_or("-".into(), |weight| ((1e4 * weight).round() / 1e4).to_string())) }
                    td class="number" { (part.density) }
                    td class="number" { (short(total.norms[i])) }
                    td class="number" { (total.with_merged[i].map_or("-".into(), cosine)) }
                    @for j in 1..list.len() {
                        @let k = pairs(list.len()).position(|pair| pair == (i, j));
                        td class="number" { (k.and_then(|k| total.cosines[k]).map_or(String::new(), cosine)) }
                    }
                }
            }
        } }
    }
}

/// Colours of the parts' curves; the merged change has the first colour of the page.
const COLOURS: [&str; 2] = ["valid", "other"];

fn charts(report: &MergeReport) -> Vec<Chart<'static>> {
    let layers: Vec<(f64, &GroupReport)> =
        report.layers.iter().filter_map(|g| Some((g.name.parse::<f64>().ok()?, g))).collect();
    let line = |name: String, i: usize, of: &dyn Fn(&GroupReport) -> Option<f64>| Series {
        name,
        colour: COLOURS[i % 2],
        look: if i < 2 { SeriesStyle::Dots } else { SeriesStyle::Faint },
        points: layers.iter().filter_map(|(x, g)| Some((*x, of(g)?))).collect(),
    };
    let merged =
        |name: &str, of: &dyn Fn(&GroupReport) -> Option<f64>| Series { colour: "train", ..line(name.into(), 0, of) };
    let chart = |title: &str, note: &str, series: Vec<Series>, format: fn(f64) -> String| Chart {
        title: title.into(),
        note: note.into(),
        series,
        over: "layer",
        format,
        guide: None,
        resumed: &[],
        skipped: &[],
        log_above: f64::INFINITY,
        from_zero: true,
    };
    let names: Vec<String> = report.parts.list().iter().map(|part| label(&part.folder)).collect();
    let (parts, noun) = (names.len(), report.parts.noun());
    let mut norms: Vec<Series> =
        names.iter().enumerate().map(|(i, name)| line(name.clone(), i, &move |g| Some(g.norms[i]))).collect();
    norms.push(merged("merged", &|g| Some(g.merged_norm)));
    let mut charts = vec![chart("Norms", "of weighted changes, over layers", norms, short)];
    if parts > 1 {
        let between = pairs(parts)
            .enumerate()
            .map(|(k, (i, j))| line(format!("{} and {}", names[i], names[j]), k, &move |g| g.cosines[k]));
        charts.push(chart(
            &format!("Cosines between {noun}s"),
            "1: the same direction, 0: nothing in common",
            between.collect(),
            cosine,
        ));
        let with = names.iter().enumerate().map(|(i, name)| line(name.clone(), i, &move |g| g.with_merged[i]));
        charts.push(chart(
            "Cosines with the merged change",
            &format!("how much of each {noun} is left"),
            with.collect(),
            cosine,
        ));
        let conflicts = vec![merged("entries", &|g| g.sign_conflicts)];
        let note = format!("of entries that two {noun}s change");
        charts.push(chart("Sign conflicts", &note, conflicts, percent));
    }
    if report.total.rank.is_some() {
        charts.push(chart(
            "Energy kept",
            "by the written products",
            vec![merged("energy", &|g| Some(g.energy_kept))],
            percent,
        ));
        charts.push(chart("Rank", "mean of the layer's products", vec![merged("rank", &|g| g.rank)], short));
    }
    charts
}

fn weights(report: &MergeReport) -> Markup {
    let list =
        |numbers: &[Option<f64>]| numbers.iter().map(|n| n.map_or("-".into(), cosine)).collect::<Vec<_>>().join("  ");
    html! {
        details { summary { (report.weights.len()) " tensors" }
        div class="card scroll" { table {
            tr {
                th { "tensor" } th class="number" { "norms" } th class="number" { "cosines" }
                th class="number" { "sign conflicts" } th class="number" { "merged norm" }
                th class="number" { "rank" } th class="number" { "energy kept" }
            }
            @for w in &report.weights {
                tr {
                    td class="path" { (plain(&w.name)) }
                    td class="number" { (w.comparison.norms.iter().map(|n| short(*n)).collect::<Vec<_>>().join("  ")) }
                    td class="number" { (list(&w.comparison.cosines)) }
                    td class="number" { (w.comparison.sign_conflicts.map_or("-".into(), percent)) }
                    td class="number" { (short(w.comparison.merged_norm)) }
                    td class="number" { (w.rank.map_or("-".into(), |rank| rank.to_string())) }
                    td class="number" { (percent(w.energy_kept)) }
                }
            }
        } } }
    }
}
