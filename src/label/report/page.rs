//! Renders the report as one HTML page in the style of run pages. The page loads nothing from the network.

use super::{Agreement, JudgeReport, LabelReport};
use crate::label::bootstrap::Estimate;
use crate::label::ranking::SourceRanking;
use crate::label::record::AnnotatorKind;
use crate::methods::proportion::Proportion;
use crate::report::count;
use crate::runs::page::document::document;
use crate::runs::page::escape::{escape, name};
use crate::runs::page::plot::{figure, forest};
use std::fmt::Write;

/// Renders the page.
pub fn render(report: &LabelReport) -> String {
    let c = &report.counts;
    let mut body = format!(
        r#"<header><h1>{}</h1><p class="sub">Labels of {} prompts, judged by {}; verdicts by {}.</p></header>"#,
        name(&report.title),
        count(c.prompts as u64),
        report.judged_by.iter().map(|who| name(who)).collect::<Vec<_>>().join(", "),
        match report.aggregation {
            crate::label::aggregate::Aggregation::Majority => "majority",
            crate::label::aggregate::Aggregation::DawidSkene => "Dawid and Skene's model",
        },
    );
    body += &tiles(report);
    body += &findings(report);
    body += &agreement(&report.agreement);
    body += &ranking(&report.ranking);
    body += &judges(&report.judges);
    body += &length(report);
    let _ = write!(body, "<footer>ft {} · intervals are 95 %</footer>", report.ft_version);
    document(&report.title, &body)
}

fn tile(name: &str, value: &str, small: &str) -> String {
    format!(r#"<div class="tile"><span>{name}</span><b>{value}</b><small>{}</small></div>"#, escape(small))
}

fn tiles(report: &LabelReport) -> String {
    let c = &report.counts;
    let n = |x: usize| count(x as u64);
    let decided: usize = ["a", "b"].iter().map(|k| report.verdicts[k]).sum();
    let alpha = report.agreement.alpha_nominal;
    format!(
        r#"<div class="tiles">{}{}{}{}{}</div>"#,
        tile("pairs", &n(c.pairs), &format!("of {} answers, {} hidden repeats", n(c.candidates), n(c.repeats))),
        tile("votes", &n(c.votes), &format!("{} people, {} machines, {} skips", c.people, c.machines, n(c.skips))),
        tile(
            "pairs with a better answer",
            &n(decided),
            &format!("{} ties, {} both bad", n(report.verdicts["tie"]), n(report.verdicts["both_bad"]))
        ),
        tile(
            "Krippendorff's alpha",
            &alpha.map_or("–".into(), |a| format!("{:.2}", a.value)),
            &alpha.map_or("no pair was judged by two".into(), interval)
        ),
        best(&report.ranking),
    )
}

fn best(ranking: &SourceRanking) -> String {
    let first = ranking.sources.first();
    let strength = first.map_or("–".into(), |s| format!("{:.0}", s.bradley_terry.value));
    tile("strongest source", &strength, first.map_or("no two sources were compared", |s| &s.source))
}

fn interval(e: Estimate) -> String {
    e.interval.map_or("no interval".into(), |[low, high]| format!("{low:.2} to {high:.2}"))
}

fn findings(report: &LabelReport) -> String {
    if report.counts.votes == 0 {
        return r#"<section><h2>Findings</h2><p>Nobody has voted yet.</p></section>"#.into();
    }
    let each: String = report
        .findings
        .iter()
        .map(|f| {
            let class = if f.grave { "card finding grave" } else { "card finding" };
            format!(r#"<div class="{class}"><h3>{}</h3><p>{}</p></div>"#, escape(&f.what), escape(&f.next))
        })
        .collect();
    let well = r#"<p class="well">No problem detected in these labels.</p>"#;
    format!("<section><h2>Findings</h2>{}</section>", if each.is_empty() { well } else { &each })
}

fn agreement(a: &Agreement) -> String {
    let rows: Vec<(String, f64, Option<[f64; 2]>)> = [
        ("alpha, choices", a.alpha_nominal),
        ("alpha, ranks", a.alpha_ordinal),
        ("alpha, distances", a.alpha_interval),
        ("Fleiss' kappa", a.fleiss.map(|f| f.kappa)),
        ("equal votes", a.raw),
        ("with oneself", a.self_consistency.map(|r| Estimate { value: r.share, interval: Some(r.interval) })),
    ]
    .into_iter()
    .filter_map(|(name, e)| e.map(|e| (name.to_string(), e.value, e.interval)))
    .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut out = figure(
        "Agreement",
        "1: full agreement, 0: no more than by chance; below the line at 0.667 no conclusion should be drawn. Equal votes and hidden repeats are plain shares",
        &forest("agreement measures", &rows, |v| format!("{v:.2}"), Some(0.667), Some([0.0, 1.0])),
    );
    let couples: Vec<(String, f64, Option<[f64; 2]>)> =
        a.cohen.iter().map(|c| (format!("{} – {} ({})", c.a, c.b, c.pairs), c.kappa.value, c.kappa.interval)).collect();
    if !couples.is_empty() {
        out += &figure(
            "Each two annotators",
            "Cohen's kappa of two annotators over the pairs that both judged (in parentheses: how many)",
            &forest("Cohen's kappa", &couples, |v| format!("{v:.2}"), Some(0.0), Some([0.0, 1.0])),
        );
    }
    format!(r#"<section><h2>Agreement</h2><div class="columns">{out}</div></section>"#)
}

fn ranking(r: &SourceRanking) -> String {
    if r.sources.is_empty() {
        return String::new();
    }
    let rows: Vec<_> =
        r.sources.iter().map(|s| (s.source.clone(), s.bradley_terry.value, s.bradley_terry.interval)).collect();
    let plot = figure(
        "Strength of the sources",
        "Bradley-Terry in Elo points around 1000: a lead of 400 wins ten of eleven; ties are half a win",
        &forest("Bradley-Terry strength", &rows, |v| format!("{v:.0}"), Some(1000.0), None),
    );
    let table: String = r
        .sources
        .iter()
        .map(|s| {
            let ties = s.comparisons - s.wins - s.losses;
            format!(
                r#"<tr><td class="path">{}</td><td class="number">{:.0}</td><td class="number">{:.0}</td><td class="number">{}</td><td class="number">{}</td><td class="number">{ties}</td></tr>"#,
                name(&s.source),
                s.bradley_terry.value,
                s.elo.value,
                s.wins,
                s.losses
            )
        })
        .collect();
    let duels: String = r
        .duels
        .iter()
        .map(|d| {
            format!(
                r#"<tr><td class="path">{}</td><td class="path">{}</td><td class="number">{}</td><td class="number">{}</td><td class="number">{}</td></tr>"#,
                name(&d.a),
                name(&d.b),
                d.a_wins,
                d.ties,
                d.b_wins
            )
        })
        .collect();
    format!(
        r#"<section><h2>Sources</h2>{plot}<div class="card" style="margin-top:12px"><div class="scroll"><table><tr><th>source</th><th class="number">strength</th><th class="number">Elo</th><th class="number">wins</th><th class="number">losses</th><th class="number">ties</th></tr>{table}</table></div><details><summary>one against another</summary><div class="scroll"><table><tr><th>a</th><th>b</th><th class="number">a wins</th><th class="number">ties</th><th class="number">b wins</th></tr>{duels}</table></div></details></div></section>"#
    )
}

fn judges(judges: &[JudgeReport]) -> String {
    if judges.is_empty() {
        return String::new();
    }
    let rates = |pick: &dyn Fn(&JudgeReport) -> Option<Proportion>| -> Vec<(String, f64, Option<[f64; 2]>)> {
        judges.iter().filter_map(|j| pick(j).map(|r| (j.habits.name.clone(), r.share, Some(r.interval)))).collect()
    };
    let percent = |v: f64| format!("{:.0}%", 100.0 * v);
    let plot = |title: &str, note: &str, rows: Vec<(String, f64, Option<[f64; 2]>)>| match rows.is_empty() {
        true => String::new(),
        false => figure(title, note, &forest(title, &rows, percent, Some(0.5), Some([0.0, 1.0]))),
    };
    let plots = [
        plot("Left side", "how often the answer on the left is chosen; half: no bias", rates(&|j| j.habits.left)),
        plot("Longer answer", "how often the longer answer is chosen", rates(&|j| j.habits.longer)),
        plot(
            "With the verdicts",
            "how often a judge whose votes do not count says the same",
            rates(&|j| j.with_verdicts.map(|w| w.same)),
        ),
        plot(
            "Order",
            "how often a machine's verdict changes with the order",
            rates(&|j| j.habits.order.map(|o| o.flipped)),
        ),
    ]
    .concat();
    let share = |r: Option<Proportion>| r.map_or("–".into(), |r| format!("{:.0} %", 100.0 * r.share));
    let number = |x: Option<f64>, digits: usize| x.map_or("–".into(), |x| format!("{x:.digits$}"));
    let row = |j: &JudgeReport| {
        let h = &j.habits;
        let cells = [
            count(h.votes as u64),
            number(h.seconds, 1),
            share(h.left),
            share(h.longer),
            number(h.length_correlation, 2),
            share(h.consistent),
            number(j.reliability, 2),
            j.with_verdicts.and_then(|w| w.kappa).map_or("–".into(), |k| format!("{:.2}", k.value)),
        ];
        let cells: String = cells.iter().map(|c| format!(r#"<td class="number">{c}</td>"#)).collect();
        let kind = if h.kind == AnnotatorKind::Person { "" } else { h.kind.name() };
        format!(r#"<tr><td class="path">{} <code>{kind}</code></td>{cells}</tr>"#, name(&h.name))
    };
    let rows: String = judges.iter().map(row).collect();
    let heads = ["votes", "seconds", "left", "longer", "length r", "itself", "reliability", "kappa with verdicts"];
    let heads: String = heads.iter().map(|h| format!(r#"<th class="number">{h}</th>"#)).collect();
    format!(
        r#"<section><h2>Judges</h2><div class="card"><div class="scroll"><table><tr><th>judge</th>{heads}</tr>{rows}</table></div></div><div class="columns">{plots}</div></section>"#
    )
}

fn length(report: &LabelReport) -> String {
    let Some(length) = report.length else { return String::new() };
    let rate = |name: &str, r: Proportion| (name.to_string(), r.share, Some(r.interval));
    let rows = [rate("longer wins", length.longer), rate("shorter wins", length.shorter)];
    let note =
        format!("accuracy of a rule that sees nothing but lengths, on {} pairs with a better answer", length.pairs);
    let plot = forest("length alone", &rows, |v| format!("{:.0}%", 100.0 * v), Some(0.5), Some([0.0, 1.0]));
    format!("<section><h2>Length alone</h2>{}</section>", figure("What length gets right", &note, &plot))
}
