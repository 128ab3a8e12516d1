//! Trains byte-level BPE tokenizers on the user's text.

use super::bpe::END_OF_TEXT;
use crate::data::rows::{RowFormat, RowPurpose, RowReader, SourceSpec};
use crate::data::source;
use crate::error::{Error, Result};
use crate::fsutil::{self, io_error};
use serde_json::json;
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel};
use tokenizers::{AddedToken, PostProcessorWrapper, TokenizerImpl};

const PAD: &str = "<|pad|>";

/// Options for training a tokenizer.
#[derive(Debug, Clone)]
pub struct BpeTraining {
    /// Text files, or files of rows.
    pub files: Vec<PathBuf>,
    /// Number of entries, including special tokens.
    pub vocab_size: usize,
    /// Special tokens in addition to those that every tokenizer gets.
    pub special: Vec<String>,
    /// How often a pair of tokens must occur to become a token.
    pub min_frequency: u64,
    /// Whether to add ChatML's template and tokens.
    pub chatml: bool,
}

/// Result of training a tokenizer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TrainedBpe {
    /// Number of entries, including special tokens.
    pub vocab_size: usize,
    /// The special tokens.
    pub special: Vec<String>,
    /// Number of texts that were read.
    pub texts: u64,
    /// Number of bytes that were read.
    pub bytes: u64,
    /// Whether a chat template was written.
    pub chat_template: bool,
}

const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";

/// Trains byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2) on the text of files and writes
/// tokenizer.json, tokenizer_config.json and, with `chatml`, the chat template into `folder`. Deterministic: the same
/// text gives the same tokenizer.
pub fn train_bpe(training: &BpeTraining, folder: &Path) -> Result<TrainedBpe> {
    let mut special = vec![END_OF_TEXT.to_string(), PAD.to_string()];
    if training.chatml {
        special.extend(["<|im_start|>", "<|im_end|>"].map(String::from));
    }
    for token in &training.special {
        if token.is_empty() || special.contains(token) {
            return Err(Error::user(format!("--special `{token}`: the token is empty or exists already")));
        }
        special.push(token.clone());
    }
    let least = special.len() + 256;
    if training.vocab_size < least {
        return Err(Error::user(format!("--vocab-size {}: at least {least} expected", training.vocab_size))
            .hint("the 256 bytes and the special tokens are entries too"));
    }
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(training.vocab_size)
        .min_frequency(training.min_frequency)
        .special_tokens(special.iter().map(|s| AddedToken::from(s.as_str(), true)).collect())
        .initial_alphabet(alphabet)
        .show_progress(false)
        .build();
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let (sender, texts) = sync_channel(64);
    let read = std::thread::scope(|threads| {
        let reader = threads.spawn(|| read_texts(&training.files, sender));
        let trained = tokenizer.train(&mut trainer, TextReceiver(texts)).map(drop);
        let read = reader.join().map_err(|_| Error::bug("reading texts panicked"))?;
        trained.map_err(|e| Error::bug(format!("training the tokenizer: {e}")))?;
        read
    })?;
    let text = tokenizer.to_string(true).map_err(|e| Error::bug(format!("tokenizer.json: {e}")))?;
    let end = if training.chatml { "<|im_end|>" } else { END_OF_TEXT };
    let config = json!({
        "add_prefix_space": false, "bos_token": END_OF_TEXT, "clean_up_tokenization_spaces": false, "eos_token": end,
        "model_max_length": 1_000_000, "pad_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": null,
    });
    let write = |name: &str, text: &str| {
        fsutil::write_atomic(&folder.join(name), |w| std::io::Write::write_all(w, text.as_bytes()))
    };
    write("tokenizer.json", &text)?;
    fsutil::write_json(&folder.join("tokenizer_config.json"), &config)?;
    if training.chatml {
        write("chat_template.jinja", CHATML)?;
    }
    let vocab_size = tokenizer.get_vocab_size(true);
    Ok(TrainedBpe { vocab_size, special, texts: read.0, bytes: read.1, chat_template: training.chatml })
}

/// Iterator over the texts that the reading thread sends.
struct TextReceiver(Receiver<String>);

impl Iterator for TextReceiver {
    type Item = String;
    fn next(&mut self) -> Option<String> {
        self.0.recv().ok()
    }
}

/// Plain text is sent in blocks of whole lines of about this many bytes.
const BLOCK: usize = 1 << 16;

/// Sends the text of every file. Returns the number of texts and of bytes.
fn read_texts(files: &[PathBuf], to: SyncSender<String>) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    let mut send = |text: String| {
        count += 1;
        bytes += text.len() as u64;
        // The receiver is gone only if training failed, and then that error is reported.
        let _ = to.send(text);
    };
    for path in files {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if ["txt", "text", "md"].contains(&extension.as_str()) {
            lines(path, &mut send)?;
        } else {
            rows(path, &mut send)?;
        }
    }
    if bytes == 0 {
        return Err(Error::user("the files contain no text"));
    }
    Ok((count, bytes))
}

fn lines(path: &Path, send: &mut dyn FnMut(String)) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| io_error("reading", path, e))?;
    let mut reader = BufReader::new(file);
    let (mut block, mut line) = (String::new(), 0);
    loop {
        let before = block.len();
        line += 1;
        match reader.read_line(&mut block) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Error::user(format!("{}:{line}: not UTF-8", path.display()))
                    .hint("convert the file with: iconv -t UTF-8"));
            }
            Err(e) => return Err(io_error("reading", path, e)),
        }
        let ended = block.len() == before;
        if !block.is_empty() && (ended || block.len() >= BLOCK) {
            send(std::mem::take(&mut block));
        }
        if ended {
            return Ok(());
        }
    }
}

/// Sends every text of every row, as training on the rows would see it.
fn rows(path: &Path, send: &mut dyn FnMut(String)) -> Result<()> {
    let reading = RowReader::of(path, &SourceSpec::file(path, RowFormat::Auto), RowPurpose::Anything)?;
    source::for_each_selected_chunk(reading.wanted(), path, None, |chunk| {
        // Parsed one by one: the threads that could parse in parallel are waiting for these texts.
        for raw in chunk {
            reading.row(raw, path)?.record.into_texts().into_iter().for_each(&mut *send);
        }
        Ok(())
    })?;
    Ok(())
}
