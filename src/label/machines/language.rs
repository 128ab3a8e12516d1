//! Judges with a language model and a rubric.

use super::judge::{JudgeTask, Opinion, PairJudge};
use crate::data::chat::ChatTokenizer;
use crate::data::rows::ChatMessage;
use crate::error::{Error, Result};
use crate::generate::engine::complete;
use crate::generate::prompt_check::max_sequence_tokens;
use crate::generate::settings::GenerationSettings;
use crate::label::project::encoding;
use crate::label::record::annotator::AnnotatorKind;
use crate::label::record::vote::VoteChoice;
use crate::models::Model;
use crate::nn::Tokens;
use serde_json::{Value, json};
use std::collections::HashSet;
use tch::Kind as Dtype;

/// Default rubric for language models.
pub const RUBRIC: &str = "You compare two answers to the same question. Judge whether each is correct, whether it does \
what was asked, and whether it is clear. Do not prefer an answer because it is longer, because it comes first, or because \
of its tone.";

/// The verdict words of a language model, in the order of [`WORD_CHOICES`]. They are letters and not digits because
/// many tokenizers split a digit from the space before it: ` 1` and ` tie` would then begin with the same token.
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
