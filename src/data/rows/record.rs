//! What a row says, whatever its format: a conversation, an instruction, a prompt with its completion, plain text, a
//! prompt alone, a pair of answers or a labelled answer.

use super::conversation::{ChatMessage, Conversation};

/// A row of the Alpaca format: instruction, input and output.
#[derive(Debug, Clone, PartialEq)]
pub struct AlpacaRow {
    /// The system message.
    pub system: Option<String>,
    /// Earlier questions and answers.
    pub history: Vec<(String, String)>,
    /// The task.
    pub instruction: String,
    /// What the task is about.
    pub input: Option<String>,
    /// The answer.
    pub output: String,
}

impl AlpacaRow {
    /// Returns the row as a conversation, for models with a chat template. Instruction and input are one user turn, as
    /// a user would type them. The fixed text of the Alpaca prompt is left out: it replaces a template and would be
    /// noise inside one.
    pub fn conversation(&self) -> Conversation {
        let mut messages = Vec::new();
        messages.extend(self.system.iter().map(|s| ChatMessage::new("system", s)));
        for (asked, answered) in &self.history {
            messages.push(ChatMessage::new("user", asked));
            messages.push(ChatMessage::new("assistant", answered));
        }
        let user = match &self.input {
            Some(input) => format!("{}\n\n{input}", self.instruction),
            None => self.instruction.clone(),
        };
        messages.push(ChatMessage::new("user", user));
        messages.push(ChatMessage::new("assistant", &self.output));
        Conversation { messages, ..Default::default() }
    }

    /// Returns the standard Alpaca prompt, for models without a chat template; the output is its completion.
    pub fn prompt(&self) -> String {
        match &self.input {
            Some(input) => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
                 response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{input}\n\n### Response:\n",
                self.instruction
            ),
            None => format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
                 ### Instruction:\n{}\n\n### Response:\n",
                self.instruction
            ),
        }
    }
}

/// A prompt, as text or as messages.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptContent {
    /// Text that is not a conversation.
    Text(String),
    /// Messages up to the answer, with tools and template arguments.
    Talk(Conversation),
}

/// An answer: text if its prompt is text, messages if its prompt is messages.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerContent {
    /// Text that continues the prompt.
    Text(String),
    /// The messages after the prompt.
    Talk(Vec<ChatMessage>),
}

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The prompt of both answers.
    pub prompt: PromptContent,
    /// The better answer.
    pub chosen: AnswerContent,
    /// The worse answer.
    pub rejected: AnswerContent,
    /// By how much the chosen answer is better, if the row says so.
    pub margin: Option<f64>,
    /// Prompt and both answers as text, if the row is a dialogue in text (HH); used by models without a chat template.
    pub text: Option<(String, [String; 2])>,
}

/// A prompt with an answer and its label: good or bad.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedAnswer {
    /// The prompt of the answer.
    pub prompt: PromptContent,
    /// The answer.
    pub answer: AnswerContent,
    /// Whether the answer is good.
    pub good: bool,
}

/// The content of a row, by its format.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// From `messages`, `conversations`, or a prompt and completion given as messages.
    Messages(Conversation),
    /// From `instruction`, `input` and `output`.
    Alpaca(AlpacaRow),
    /// From `prompt` and `completion` as text.
    PromptCompletion {
        /// The prompt.
        prompt: String,
        /// The text that is trained on.
        completion: String,
    },
    /// From `text`.
    Text(String),
    /// A prompt without an answer.
    Prompt(PromptContent),
    /// From `chosen` and `rejected`.
    Preference(Preference),
    /// From an answer with a label.
    Unpaired(JudgedAnswer),
}

impl Record {
    /// Returns all texts of the record.
    pub fn into_texts(self) -> Vec<String> {
        let talk = |messages: Vec<ChatMessage>| messages.into_iter().map(|m| m.content).collect::<Vec<_>>();
        let asked = |prompt: PromptContent| match prompt {
            PromptContent::Text(text) => vec![text],
            PromptContent::Talk(conversation) => talk(conversation.messages),
        };
        let answer = |answer: AnswerContent| match answer {
            AnswerContent::Text(text) => vec![text],
            AnswerContent::Talk(messages) => talk(messages),
        };
        match self {
            Self::Messages(conversation) => talk(conversation.messages),
            Self::Alpaca(row) => talk(row.conversation().messages),
            Self::PromptCompletion { prompt, completion } => vec![prompt, completion],
            Self::Text(text) => vec![text],
            Self::Prompt(prompt) => asked(prompt),
            Self::Preference(p) => [asked(p.prompt), answer(p.chosen), answer(p.rejected)].concat(),
            Self::Unpaired(v) => [asked(v.prompt), answer(v.answer)].concat(),
        }
    }
}

/// A record with its line in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// From 1: the line in a JSON Lines file, the number of the row in other files.
    pub line: usize,
    /// The content of the row.
    pub record: Record,
}
