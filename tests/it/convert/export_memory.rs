//! The memory that an export needs: that of some rows of a tensor, however large the tensor is.

use super::gguf_export::Exported;
use crate::support::command::{ft, proc_bytes, stderr};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

/// Exports a model and returns the largest memory of the process's own (without the pages of mapped files), in bytes.
fn own_memory(made: &Exported) -> u64 {
    let line = ["export", "model", "--to", "gguf", "--type", "q8_0", "--out", "out.gguf"];
    let mut command = ft(made.folder.path(), &line);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (status, mut most) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        most = most.max(proc_bytes(&status, "RssAnon:").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    most
}

#[test]
fn a_large_tensor_is_exported_some_rows_at_a_time() {
    let sizes = |vocabulary: u64| json!({"vocab_size": vocabulary, "hidden_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": true});
    let [small, large] = [512, 65536].map(|vocabulary| Exported::of("llama", sizes(vocabulary)));
    let more = own_memory(&large).saturating_sub(own_memory(&small));
    let tensor = 65536 * 256 * 4;
    assert!(more < tensor, "{more} bytes more for a tensor of {tensor}");
}
