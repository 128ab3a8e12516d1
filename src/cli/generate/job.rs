//! Answers the prompts of `ft generate`, and writes or prints the answers.

use super::prompts::GenerationPrompt;
use super::timings::PassTimings;
use crate::cli::shared::answer_file::AnswerFile;
use crate::cli::shared::answer_printer::AnswerPrinter;
use crate::cli::shared::interrupt::flag_on_interrupt;
use crate::cli::shared::named_adapters::AdaptedModel;
use crate::cli::shared::sampling::GenerationChoice;
use ft::error::{Context, Error, Result};
use ft::generate::answer::{GeneratedAnswer, StopReason};
use ft::generate::answering_adapter::AnsweringAdapter;
use ft::generate::beam;
use ft::generate::engine::{BatchLimits, Engine, GenerationRequest};
use ft::models::Model;
use ft::report;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Everything needed to answer the prompts.
pub struct GenerationJob<'a> {
    pub adapted: &'a AdaptedModel,
    pub questions: &'a [GenerationPrompt],
    pub chosen: &'a GenerationChoice,
    pub limits: BatchLimits,
    /// Number of answers to each prompt.
    pub answers: usize,
    pub timings: &'a RefCell<PassTimings>,
}

/// Progress bar, and the numbers of answers and tokens so far.
struct GenerationProgress {
    bar: report::Progress,
    began: Instant,
    answers: usize,
    tokens: usize,
}

impl GenerationProgress {
    fn new(questions: usize, done: usize) -> Self {
        let bar =
            if questions > 1 { report::bar(questions as u64, "prompts") } else { report::enclosing_work("the answer") };
        Self { bar: bar.starting_at(done as u64), began: Instant::now(), answers: 0, tokens: 0 }
    }

    fn count_tokens(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.bar.count(tokens as u64, "tokens");
    }

    fn speed(&self) -> f64 {
        self.tokens as f64 / self.began.elapsed().as_secs_f64()
    }

    fn summary(&self) -> String {
        let (tokens, time) = (report::count(self.tokens as u64), report::duration(self.began.elapsed()));
        format!("{} answers, {tokens} tokens in {time} ({:.1} tokens/s)", self.answers, self.speed())
    }
}

/// Callback that gets each generated token. Only useful where a single answer is generated.
type OnToken<'a> = &'a mut dyn FnMut(u32) -> Result<()>;

impl GenerationJob<'_> {
    /// Answers the prompts from index `from` on. `done` is called with a prompt's index and all its answers, in the
    /// order of the prompts; `on_token` with every token that the engine samples.
    fn answer_each(
        &self,
        from: usize,
        progress: &mut GenerationProgress,
        mut on_token: Option<OnToken>,
        done: &mut dyn FnMut(usize, &[GeneratedAnswer]) -> Result<()>,
    ) -> Result<()> {
        let (model, tokenizer) = (&self.adapted.model, &self.adapted.tokenizer);
        let decode = |ids: &[u32]| tokenizer.decode(ids, true);
        let settings = &self.chosen.settings;
        let mut finished = |i: usize, answers: &[GeneratedAnswer], progress: &mut GenerationProgress| {
            progress.answers += answers.len();
            progress.bar.inc(1);
            done(i, answers)
        };
        if let Some(beams) = self.chosen.beams {
            for (i, q) in self.questions.iter().enumerate().skip(from) {
                let search = |model: &Model| beam::search(model, &q.ids, &q.prefix, settings, beams, Some(&decode));
                let answers = match q.adapter {
                    AnsweringAdapter::Active => search(model),
                    AnsweringAdapter::Chosen(number) => model.with_adapter_id(number, search),
                };
                let answers = answers.context(|| format!("prompt {}", i + 1))?;
                progress.count_tokens(answers.iter().map(|a| a.tokens.len()).sum());
                finished(i, &answers, progress)?;
            }
            return Ok(());
        }
        let mut engine = Engine::new(model, settings.clone(), self.limits)?.with_decoder(&decode);
        for (i, q) in self.questions.iter().enumerate().skip(from) {
            let request = GenerationRequest {
                prefix: q.prefix.clone(),
                answers: self.answers,
                adapter: q.adapter,
                ..GenerationRequest::new(&q.ids, i as u64)
            };
            engine.add(request).context(|| format!("row {} of the prompts", i + 1))?;
        }
        let mut open: BTreeMap<usize, Vec<Option<GeneratedAnswer>>> = BTreeMap::new();
        let mut next = from;
        while !engine.is_idle() {
            let began = Instant::now();
            let step = engine.step()?;
            self.timings.borrow_mut().add(&step, began.elapsed());
            progress.count_tokens(step.tokens.len());
            if let Some(heard) = &mut on_token {
                step.tokens.iter().try_for_each(|(_, _, id)| heard(*id))?;
            }
            for f in step.finished {
                let answers = open.entry(from + f.request).or_insert_with(|| vec![None; self.answers]);
                answers[f.sample] = Some(f.completion);
            }
            while let Some(whole) =
                open.get(&next).and_then(|a| a.iter().cloned().collect::<Option<Vec<GeneratedAnswer>>>())
            {
                open.remove(&next);
                finished(next, &whole, progress)?;
                next += 1;
            }
        }
        Ok(())
    }

    /// Writes the answers to `out`, prompt by prompt, and continues a partial file. Ctrl-C keeps what is answered.
    pub fn write_answers(&self, out: &Path, fingerprint: &Value) -> Result<()> {
        let interrupted = flag_on_interrupt()?;
        let mut file = AnswerFile::open(out, fingerprint, self.answers)?;
        let from = file.prompts_done();
        if from > 0 {
            report::info(format!("{from} of {} prompts are answered already; continuing", self.questions.len()));
        }
        let mut progress = GenerationProgress::new(self.questions.len(), from);
        let going_on = || match interrupted.load(Ordering::Relaxed) {
            true => Err(Error::interrupted("stopped")),
            false => Ok(()),
        };
        let answered = self.answer_each(from, &mut progress, Some(&mut |_| going_on()), &mut |i, answers| {
            file.push(&self.rows(i, answers)?)?;
            going_on()
        });
        if interrupted.load(Ordering::Relaxed) {
            return Err(file.interrupted(self.questions.len()));
        }
        if let Err(e) = answered {
            file.discard_empty();
            return Err(e);
        }
        progress.bar.finish_and_clear();
        file.finish()?;
        report::info(progress.summary());
        Ok(())
    }

    /// Prints the answers as JSON, one object per line.
    pub fn print_json(&self) -> Result<()> {
        self.answer_each(0, &mut GenerationProgress::new(self.questions.len(), 0), None, &mut |i, answers| {
            self.rows(i, answers)?.iter().for_each(|row| println!("{}", ft::json::to_text(row)));
            Ok(())
        })
    }

    /// Prints answers as plain text. A single answer is printed token by token if stdout is a terminal.
    pub fn print_text(&self) -> Result<()> {
        let single = self.questions.len() * self.answers == 1;
        let mut progress = GenerationProgress::new(self.questions.len(), 0);
        if single && self.chosen.beams.is_none() && std::io::stdout().is_terminal() {
            let settings = &self.chosen.settings;
            let mut shown = AnswerPrinter::new(&self.adapted.tokenizer, &settings.stop_texts);
            let mut stopped = None;
            self.questions[0].prefix.iter().try_for_each(|id| shown.push(*id))?;
            let mut heard = |id| if settings.stop_ids.contains(&id) { Ok(()) } else { shown.push(id) };
            self.answer_each(0, &mut progress, Some(&mut heard), &mut |_, answers| {
                stopped = Some(answers[0].stop_reason);
                Ok(())
            })?;
            if stopped != Some(StopReason::Text) {
                shown.finish();
            }
            println!();
            report::info(progress.summary());
            return Ok(());
        }
        self.answer_each(0, &mut progress, None, &mut |i, answers| {
            for (k, answer) in answers.iter().enumerate() {
                if !single {
                    println!("=== prompt {}, answer {} ===", i + 1, k + 1);
                }
                println!("{}", report::for_stdout(&self.text(answer)?));
            }
            Ok(())
        })
    }

    /// Returns the text of an answer, without special tokens.
    fn text(&self, answer: &GeneratedAnswer) -> Result<String> {
        match &answer.text {
            Some(text) => Ok(text.clone()),
            None => self.adapted.tokenizer.decode(answer.answer_tokens(), true),
        }
    }

    /// Returns the JSON objects of the answers to prompt `i`.
    fn rows(&self, i: usize, answers: &[GeneratedAnswer]) -> Result<Vec<Value>> {
        let question = &self.questions[i];
        let row = |(k, answer): (usize, &GeneratedAnswer)| {
            let mut row = json!({
                "prompt": question.prompt,
                "text": self.text(answer)?,
                "finish_reason": answer.stop_reason.name(),
                "prompt_tokens": question.ids.len(),
                "completion_tokens": answer.tokens.len(),
            });
            if let AnsweringAdapter::Chosen(number) = question.adapter {
                row["adapter"] = json!(number.map(|number| &self.adapted.named[number].name));
            }
            if self.answers > 1 {
                row["sample"] = k.into();
            }
            if let Some(score) = answer.score {
                row["score"] = score.into();
            }
            if self.chosen.settings.log_probs {
                let name = |id: &u32| self.adapted.tokenizer.token(*id);
                row["logprobs"] = json!({
                    "token_ids": answer.tokens,
                    "tokens": answer.tokens.iter().map(name).collect::<Vec<_>>(),
                    "token_logprobs": answer.log_probs,
                    "cumulative_logprob": answer.log_probs.iter().map(|x| f64::from(*x)).sum::<f64>(),
                });
            }
            Ok(row)
        };
        answers.iter().enumerate().map(row).collect()
    }
}
