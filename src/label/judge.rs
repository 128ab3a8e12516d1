//! Lets machines compare answers: a reward model, a language model with a rubric, or a command.
//!
//! A machine sees two answers in some order and says which is better. Its choice may depend on the order, so such a
//! machine is asked in both orders, and a choice that differs between them becomes a tie. Votes store the choices in
//! both orders, so that the flips can be counted later. Invariant: a machine never sees other votes or the source of an
//! answer.

use super::encoding;
use super::project::Project;
use super::record::{AnnotatorKind, Candidate, CandidatePair, NewVote, StoredPrompt, VoteChoice};
use crate::data::chat::ChatTokenizer;
use crate::data::rows::ChatMessage;
use crate::error::{Error, Result};
use crate::fsutil::excerpt;
use crate::generate::engine::complete;
use crate::generate::prompt_check::max_sequence_tokens;
use crate::generate::settings::GenerationSettings;
use crate::models::{Model, RewardScorer};
use crate::nn::Tokens;
use crate::rewards::program::LineProgram;
use crate::rewards::spec::CommandSpec;
use crate::rng;
use rand::RngExt;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use tch::Kind as Dtype;

/// A pair to judge, with its answers in the order in which they are shown.
#[derive(Debug, Clone, Copy)]
pub struct JudgeTask<'p> {
    pub pair: &'p CandidatePair,
    pub prompt: &'p StoredPrompt,
    pub first: &'p Candidate,
    pub second: &'p Candidate,
}

impl JudgeTask<'_> {
    fn turned(self) -> Self {
        Self { first: self.second, second: self.first, ..self }
    }
}

/// A machine's opinion on a task. `Choice::A` means the answer that was shown first.
#[derive(Debug, Clone, PartialEq)]
pub struct Opinion {
    pub choice: VoteChoice,
    pub strength: Option<i64>,
    pub note: Option<String>,
    /// Scores or probabilities, stored with the vote.
    pub detail: Value,
}

/// A machine that compares two answers.
pub trait PairJudge {
    fn kind(&self) -> AnnotatorKind;
    /// Returns its description (model, rubric, …), which is stored with its annotator.
    fn detail(&self) -> Value;
    /// Returns an opinion on each task, in their order.
    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>>;
}

/// In which order the answers are shown to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgingOrder {
    /// `a` first: for a machine that scores each answer alone.
    One,
    /// One random order, with this seed.
    Random(u64),
    /// Both orders; opinions that differ become a tie.
    Both,
}

/// Returns the pairs that this annotator has not judged. Hidden repeats are left out: they test the consistency of
/// people.
pub fn open_tasks(project: &Project, annotator: i64) -> Vec<JudgeTask<'_>> {
    let judged: HashSet<i64> =
        project.votes.iter().filter(|v| !v.undone && v.annotator == annotator).map(|v| v.pair).collect();
    let (prompts, candidates) = (project.prompts_by_id(), project.candidates_by_id());
    project
        .pairs
        .iter()
        .filter(|p| p.repeat_of.is_none() && !judged.contains(&p.id))
        .filter_map(|pair| {
            let (prompt, a, b) = (prompts.get(&pair.prompt)?, candidates.get(&pair.a)?, candidates.get(&pair.b)?);
            Some(JudgeTask { pair, prompt, first: a, second: b })
        })
        .collect()
}

/// Asks a machine for its opinions on some tasks and returns them as votes.
pub fn collect_votes(
    judge: &mut dyn PairJudge,
    tasks: &[JudgeTask],
    orders: JudgingOrder,
    annotator: i64,
) -> Result<Vec<NewVote>> {
    let vote = |task: &JudgeTask, choice, swapped, opinion: Opinion, detail| NewVote {
        strength: opinion.strength.filter(|_| matches!(choice, VoteChoice::A | VoteChoice::B)),
        note: opinion.note,
        swapped,
        detail,
        ..NewVote::new(task.pair.id, annotator, choice)
    };
    if orders != JudgingOrder::Both {
        let swap = |task: &JudgeTask| match orders {
            JudgingOrder::Random(seed) => rng::stream(seed, "label: order", task.pair.id as u64).random::<bool>(),
            _ => false,
        };
        let shown: Vec<(JudgeTask, bool)> =
            tasks.iter().map(|t| if swap(t) { (t.turned(), true) } else { (*t, false) }).collect();
        let opinions = judge.opinions(&shown.iter().map(|(t, _)| *t).collect::<Vec<_>>())?;
        let each = shown.iter().zip(opinions).map(|((task, swapped), o)| {
            let choice = if *swapped { o.choice.flipped() } else { o.choice };
            let detail = o.detail.clone();
            vote(task, choice, *swapped, o, detail)
        });
        return Ok(each.collect());
    }
    let ab = judge.opinions(tasks)?;
    let ba = judge.opinions(&tasks.iter().map(|t| t.turned()).collect::<Vec<_>>())?;
    let said = |choice: VoteChoice, o: &Opinion| {
        let mut said = o.detail.clone();
        if !said.is_object() {
            said = json!({});
        }
        said["choice"] = json!(choice.name());
        said
    };
    let each = tasks.iter().zip(ab.into_iter().zip(ba)).map(|(task, (ab, ba))| {
        let turned = ba.choice.flipped();
        let detail = json!({ "ab": said(ab.choice, &ab), "ba": said(turned, &ba) });
        let agreed = ab.choice == turned;
        // A skip in one order leaves nothing to compare.
        let choice = match (ab.choice, turned) {
            (VoteChoice::Skip, _) | (_, VoteChoice::Skip) => VoteChoice::Skip,
            (a, b) if a == b => a,
            _ => VoteChoice::Tie,
        };
        let strength = ab.strength.zip(ba.strength).map(|(x, y)| x.min(y)).filter(|_| agreed);
        vote(task, choice, false, Opinion { strength, ..ab }, detail)
    });
    Ok(each.collect())
}

/// A reward model as a judge: it prefers the answer with the higher score.
pub struct RewardJudge<'m> {
    pub model: &'m Model,
    pub scoring: &'m RewardScorer,
    pub tokenizer: &'m ChatTokenizer,
    /// A difference of scores up to this is a tie.
    pub margin: f64,
    /// Name of the model in the annotator's record.
    pub name: Value,
}

/// Computes the scores of answers with a reward model; returns them by candidate id.
///
/// Errors: an answer is too long for the model's context; a score is not finite.
pub fn reward_scores<'c>(
    model: &Model,
    scoring: &RewardScorer,
    tokenizer: &ChatTokenizer,
    answers: impl IntoIterator<Item = (&'c StoredPrompt, &'c Candidate)>,
) -> Result<HashMap<i64, f64>> {
    let mut rows: Vec<(i64, Vec<u32>)> = Vec::new();
    for (prompt, answer) in answers {
        let ids = encoding::answered_ids(prompt, answer, tokenizer)?;
        if ids.len() > max_sequence_tokens(model) {
            return Err(Error::user(format!(
                "prompt {}: an answer of {} has {} tokens with its prompt, the reward model's context has {}",
                prompt.key,
                answer.source,
                ids.len(),
                max_sequence_tokens(model)
            ))
            .hint("a truncated answer would get a different score: leave such answers out of the project"));
        }
        rows.push((answer.id, ids));
    }
    // Sorted by length, as attention pads the segments of a packed row to a common length.
    rows.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
    let found = scoring.scores(model, &rows.iter().map(|(_, ids)| ids).collect::<Vec<_>>())?;
    match found.iter().all(|s| s.is_finite()) {
        true => Ok(rows.into_iter().map(|(id, _)| id).zip(found).collect()),
        false => Err(Error::user("the reward model gives scores that are not finite")
            .hint("its weights or its adapter contain NaN or infinite values; was the training run stable?")),
    }
}

impl PairJudge for RewardJudge<'_> {
    fn kind(&self) -> AnnotatorKind {
        AnnotatorKind::Reward
    }

    fn detail(&self) -> Value {
        json!({ "reward": self.name, "margin": self.margin })
    }

    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>> {
        let answers = tasks.iter().flat_map(|t| [(t.prompt, t.first), (t.prompt, t.second)]);
        let unique: BTreeMap<i64, (&StoredPrompt, &Candidate)> = answers.map(|(p, c)| (c.id, (p, c))).collect();
        let scores = reward_scores(self.model, self.scoring, self.tokenizer, unique.into_values())?;
        let opinion = |task: &JudgeTask| {
            let (a, b) = (scores[&task.first.id], scores[&task.second.id]);
            let choice = match a - b {
                d if d.abs() <= self.margin => VoteChoice::Tie,
                d if d > 0.0 => VoteChoice::A,
                _ => VoteChoice::B,
            };
            Opinion { choice, strength: None, note: None, detail: json!({ "scores": [a, b] }) }
        };
        Ok(tasks.iter().map(opinion).collect())
    }
}

/// Default rubric for language models.
pub const RUBRIC: &str = "You compare two answers to the same question. Judge whether each is correct, whether it does \
what was asked, and whether it is clear. Do not prefer an answer because it is longer, because it comes first, or because \
of its tone.";

/// The verdict words of a language model, in the order of [`SAID`]. They are letters and not digits because many
/// tokenizers split a digit from the space before it: ` 1` and ` tie` would then begin with the same token.
const WORDS: [&str; 4] = ["A", "B", "tie", "bad"];
/// The choice that each of [`WORDS`] stands for.
const WORD_CHOICES: [VoteChoice; 4] = [VoteChoice::A, VoteChoice::B, VoteChoice::Tie, VoteChoice::BothBad];
/// Text before the verdict word.
const VERDICT_PREFIX: &str = "Verdict:";

/// A language model with a rubric as a judge.
///
/// Free text from a model cannot be parsed reliably. Instead, the model's answer is started with `Verdict:`, and the
/// most probable of the words `A`, `B`, `tie` and `bad` as the next one is the verdict. So every model gives a verdict,
/// and the same one every time. With `reasoning` > 0 it first writes up to this many tokens greedily, which are placed
/// before the verdict (pairwise comparison with reasons, Zheng et al. 2023, arXiv 2306.05685, section 3.1).
pub struct LanguageJudge<'m> {
    model: &'m Model,
    tokenizer: &'m ChatTokenizer,
    rubric: String,
    reasoning: usize,
    name: Value,
    /// The tokens that `Verdict: WORD` begins with for all words, and the first token of each word after them.
    opening: Vec<u32>,
    words: [u32; 4],
}

impl<'m> LanguageJudge<'m> {
    /// Creates the judge.
    ///
    /// Errors: the model has no chat template; two of the words begin with the same token in this tokenizer.
    pub fn new(
        model: &'m Model,
        tokenizer: &'m ChatTokenizer,
        rubric: Option<String>,
        reasoning: usize,
        name: Value,
    ) -> Result<Self> {
        if !tokenizer.has_template() {
            return Err(
                Error::user("the model has no chat template, which a judge needs").hint("use an instruct model")
            );
        }
        let whole: Vec<Vec<u32>> =
            WORDS.iter().map(|w| tokenizer.encode(&format!("{VERDICT_PREFIX} {w}"))).collect::<Result<_>>()?;
        let shared =
            (0..).take_while(|i| whole.iter().all(|w| w.get(*i).is_some_and(|id| Some(id) == whole[0].get(*i))));
        let shared = shared.count();
        let first: Vec<u32> = whole.iter().filter_map(|w| w.get(shared).copied()).collect();
        let words = <[u32; 4]>::try_from(first).ok().filter(|w| w.iter().collect::<HashSet<_>>().len() == 4);
        let words = words.ok_or_else(|| {
            Error::user(format!("the words {} begin with the same token in this tokenizer", WORDS.join(", ")))
                .hint("use another model as a judge, or a command")
        })?;
        let rubric = rubric.unwrap_or_else(|| RUBRIC.into());
        Ok(Self { model, tokenizer, rubric, reasoning, name, opening: whole[0][..shared].to_vec(), words })
    }

    /// Returns the token ids of the question to the judge, up to where its answer begins.
    fn ids(&self, task: &JudgeTask) -> Result<Vec<u32>> {
        let talk = encoding::conversation(task.prompt)?;
        let turns: Vec<String> = talk.messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
        let question = match &talk.messages[..] {
            [one] => one.content.clone(),
            _ => turns.join("\n"),
        };
        let first = if self.reasoning > 0 { "Give your reasons in a few sentences, then end" } else { "End" };
        let text = format!(
            "{}\n\n[Question]\n{question}\n\n[Answer A]\n{}\n\n[Answer B]\n{}\n\n[Task]\n{first} with \"{VERDICT_PREFIX} A\" if \
             answer A is better, \"{VERDICT_PREFIX} B\" if answer B is better, \"{VERDICT_PREFIX} tie\" if they are equally good, or \
             \"{VERDICT_PREFIX} bad\" if both are bad.",
            self.rubric, task.first.text, task.second.text
        );
        self.tokenizer.encode_prompt(&self.tokenizer.render(&[ChatMessage::new("user", text)], true)?)
    }

    /// Lets the model write its reasons and appends them to the prompts. Returns the reasons as text.
    fn reason(&self, prompts: &mut [Vec<u32>]) -> Result<Vec<Option<String>>> {
        if self.reasoning == 0 {
            return Ok(vec![None; prompts.len()]);
        }
        let settings = GenerationSettings {
            stop_texts: Vec::new(),
            ..GenerationSettings::greedy(self.reasoning, self.tokenizer.stop_ids())
        };
        let written = complete(self.model, prompts, &settings, &mut |_, _| {})?;
        let mut texts = Vec::new();
        for (prompt, completion) in prompts.iter_mut().zip(written) {
            // The model may have written a verdict itself. It is cut off: all verdicts are read in the same way.
            let text = self.tokenizer.decode(completion.answer_tokens(), true)?;
            let reasons = text.split(VERDICT_PREFIX).next().unwrap_or_default().trim_end().to_string();
            prompt.extend(self.tokenizer.encode(&format!("{reasons}\n"))?);
            texts.push(Some(reasons).filter(|r| !r.is_empty()));
        }
        Ok(texts)
    }
}

impl PairJudge for LanguageJudge<'_> {
    fn kind(&self) -> AnnotatorKind {
        AnnotatorKind::Judge
    }

    fn detail(&self) -> Value {
        json!({ "model": self.name, "rubric": self.rubric, "reasoning": self.reasoning })
    }

    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>> {
        let mut opinions: Vec<Option<Opinion>> = vec![None; tasks.len()];
        let (mut places, mut prompts) = (Vec::new(), Vec::new());
        for (i, task) in tasks.iter().enumerate() {
            let ids = self.ids(task)?;
            let needed = ids.len() + self.reasoning + self.opening.len() + 1;
            if needed > max_sequence_tokens(self.model) {
                let note =
                    format!("needs {needed} tokens, the judge's context has {}", max_sequence_tokens(self.model));
                opinions[i] =
                    Some(Opinion { choice: VoteChoice::Skip, strength: None, note: Some(note), detail: json!({}) });
            } else {
                places.push(i);
                prompts.push(ids);
            }
        }
        let reasons = self.reason(&mut prompts)?;
        for ((place, mut ids), reasons) in places.into_iter().zip(prompts).zip(reasons) {
            ids.extend(&self.opening);
            let tokens = Tokens::pack(&[&ids[..]], self.model.device());
            let logits = self.model.infer(&tokens, |out| out.logits(&tokens.segments.last_rows()))?;
            let log_probs = logits.log_softmax(-1, Dtype::Double).view([-1]);
            let p: Vec<f64> = self.words.iter().map(|id| log_probs.double_value(&[i64::from(*id)]).exp()).collect();
            let total: f64 = p.iter().sum();
            let best = (0..p.len()).max_by(|i, j| p[*i].total_cmp(&p[*j])).unwrap_or(0);
            if !total.is_finite() || total <= 0.0 {
                return Err(Error::user(format!(
                    "prompt {}: the judge gives no usable probabilities",
                    tasks[place].prompt.key
                ))
                .hint("its weights or its adapter contain NaN or infinite values"));
            }
            let shares: serde_json::Map<String, Value> =
                WORD_CHOICES.iter().zip(&p).map(|(c, p)| (c.name().to_string(), json!(p / total))).collect();
            let detail = json!({ "probabilities": shares, "of_all_words": total });
            opinions[place] = Some(Opinion { choice: WORD_CHOICES[best], strength: None, note: reasons, detail });
        }
        opinions.into_iter().map(|o| o.ok_or_else(|| Error::bug("a task without an opinion"))).collect()
    }
}

/// Bytes that an opinion of a command may have on average.
const BYTES_PER_OPINION: usize = 4096;

/// A program as a judge. It reads a line `{"prompt", "a", "b"}` per task and prints a line per choice: the bare choice,
/// or `{"choice", "strength", "note"}`.
pub struct CommandJudge(LineProgram, Vec<String>);

impl CommandJudge {
    pub fn new(spec: CommandSpec) -> Result<Self> {
        let run = spec.run.clone();
        LineProgram::new(
            spec,
            "{\"prompt\": [{\"role\": …, \"content\": …}], \"a\": …, \"b\": …}",
            "one of a, b, tie, both_bad, skip, or {\"choice\": …, \"strength\": 1 to 3, \"note\": …}",
            BYTES_PER_OPINION,
        )
        .map(|program| Self(program, run))
    }

    fn read(&self, line: &str, task: &JudgeTask) -> Result<Opinion> {
        let wrong = || {
            Error::user(format!("{}: {:?} for prompt {}", self.0.name(), excerpt(line), task.prompt.key)).hint(
                "expected one of a, b, tie, both_bad, skip, or {\"choice\": …, \"strength\": 1 to 3, \"note\": …}",
            )
        };
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| json!(line));
        let word = value.get("choice").unwrap_or(&value).as_str().ok_or_else(wrong)?;
        let choice = VoteChoice::named(&word.to_lowercase()).ok_or_else(wrong)?;
        let strength = match value.get("strength") {
            None | Some(Value::Null) => None,
            Some(n) => Some(n.as_i64().filter(|n| (1..=3).contains(n)).ok_or_else(wrong)?),
        };
        let note = value.get("note").and_then(Value::as_str).map(String::from);
        Ok(Opinion { choice, strength, note, detail: json!({}) })
    }
}

impl PairJudge for CommandJudge {
    fn kind(&self) -> AnnotatorKind {
        AnnotatorKind::Command
    }

    fn detail(&self) -> Value {
        json!({ "command": self.1 })
    }

    fn opinions(&mut self, tasks: &[JudgeTask]) -> Result<Vec<Opinion>> {
        let line =
            |t: &JudgeTask| json!({ "prompt": t.prompt.messages, "a": t.first.text, "b": t.second.text }).to_string();
        let printed = self.0.ask(&tasks.iter().map(line).collect::<Vec<_>>())?;
        printed.iter().zip(tasks).map(|(line, task)| self.read(line, task)).collect()
    }
}
