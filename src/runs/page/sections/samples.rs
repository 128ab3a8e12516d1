//! The model's answers to a few prompts, before and after training.

use crate::data::chat::ChatTurn;
use crate::runs::folder::{RunFolder, RunSample};
use crate::runs::page::escape::plain;
use crate::runs::page::markdown::text_with_formulas;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Renders the section of answers; nothing for a run without samples.
pub fn samples(run: &RunFolder) -> Markup {
    let steps: BTreeSet<u64> = run.samples.iter().map(|s| s.step).collect();
    let (Some(&first), Some(&last)) = (steps.first(), steps.last()) else { return Markup::default() };
    // Every step with samples has the same prompts in the same order.
    let at = |step: u64| run.samples.iter().filter(move |s| s.step == step);
    let from = if run.plan.recipe.data.valid.is_some() { "validation" } else { "training" };
    html! {
        section {
            h2 { "Answers to " (from) " prompts" }
            @for (i, sample) in at(last).enumerate() {
                @let same = |step: u64| at(step).nth(i).filter(|s| s.prompt == sample.prompt);
                @let between: Vec<&RunSample> =
                    steps.iter().filter(|n| **n != first && **n != last).filter_map(|n| same(*n)).collect();
                div class="card sample" {
                    div class="prompt" { (prompt(sample)) }
                    div class="answers" {
                        @if let Some(before) = same(first).filter(|_| first != last) { (answer("before", before)) }
                        (answer("after", sample))
                        @if let Some(expected) = &sample.expected {
                            (titled_text("expected", html! { "Answer in the data" }, expected))
                        }
                    }
                    @if !between.is_empty() {
                        details {
                            summary { "In between" }
                            div class="answers" { @for sample in between { (answer("", sample)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Renders an answer under the step at which it was given.
fn answer(class: &str, sample: &RunSample) -> Markup {
    let right = sample.expected.as_ref().is_some_and(|e| e.trim() == sample.text.trim());
    let title = html! {
        @if sample.step == 0 { "Before" } @else { "After step " (sample.step) }
        @if right { " " span class="hit" { "as expected" } }
    };
    titled_text(class, title, &sample.text)
}

fn titled_text(class: &str, title: Markup, text: &str) -> Markup {
    html! {
        div class={ "answer " (class) } {
            h4 { (title) }
            div class="text" dir="auto" {
                @if text.trim().is_empty() { em { "(nothing)" } } @else { (text_with_formulas(text.trim())) }
            }
        }
    }
}

/// Renders the prompt of a sample, turn by turn if the turns are known.
fn prompt(sample: &RunSample) -> Markup {
    let said = |text: &str| html! { div class="text" dir="auto" { (text_with_formulas(text.trim())) } };
    let role = |turn: &ChatTurn| match turn.role.as_str() {
        "system" => "Instruction",
        "user" => "Question",
        _ => "Earlier answer",
    };
    match &sample.turns {
        None => said(&sample.prompt),
        Some(turns) => html! {
            @for turn in turns { div class={ "turn " (plain(&turn.role)) } { h4 { (role(turn)) } (said(&turn.text)) } }
        },
    }
}
