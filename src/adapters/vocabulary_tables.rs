//! What PEFT's files have of embedding and output head besides an adapter: the base's whole tables, if its vocabulary had
//! been resized (`save_embedding_layers="auto"`), and the same numbers twice, if the two share one weight.

use super::base_layer::BASE_LAYER;
use super::kind::{EMBEDDINGS, HEAD};
use super::spec::AdapterSpec;
use super::token_rows::{ROWS, ROWS_BESIDE_LORA};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// Takes the base's tables from the tensors of a file and returns them, by module. Also removes tensors of the output head
/// that repeat those of the embedding, whose weight it shares.
pub(super) fn take(spec: &AdapterSpec, tensors: &mut BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let selection = spec.selection()?;
    let modules: BTreeSet<String> = tensors.keys().filter_map(|name| table_of(name)).map(String::from).collect();
    let rows_alone = |module: &&String| tensors.contains_key(&format!("{module}.{ROWS}"));
    let rows_alone: BTreeSet<String> = modules.iter().filter(rows_alone).cloned().collect();
    let embedding = modules.iter().find(|module| !module.ends_with(HEAD));
    if let Some(embedding) = embedding {
        drop_copies(embedding, spec.asks_to_tie(), tensors);
    }
    let mut tables = BTreeMap::new();
    for module in &modules {
        let whole = !selection.is_saved_whole(&format!("{module}.weight"));
        let beneath = [
            (".token_adapter.base_layer.weight", true),
            (".original_module.weight", true),
            (BASE_LAYER, rows_alone.contains(module)),
            (".weight", whole),
        ];
        for name in beneath.into_iter().filter(|(_, taken)| *taken).map(|(ending, _)| format!("{module}{ending}")) {
            tables.extend(tensors.remove(&name).map(|table| (module.clone(), table)));
        }
    }
    if let Some(embedding) = embedding
        && same(tables.get(embedding), tables.get(HEAD))
    {
        tables.remove(HEAD);
    }
    Ok(tables)
}

fn same(a: Option<&Tensor>, b: Option<&Tensor>) -> bool {
    a.zip(b).is_some_and(|(a, b)| a.size() == b.size() && a.equal(b))
}

/// Pairs of names within an output head and the embedding that have equal tensors, if the two are adapted as one. The factors
/// of a head's update are those of the embedding's, transposed and with exchanged names.
const TIED: [(&str, &str, bool); 4] = [
    ("weight", "weight", false),
    ("base_layer.weight", "base_layer.weight", false),
    ("lora_A.weight", "lora_embedding_B", true),
    ("lora_B.weight", "lora_embedding_A", true),
];
/// The same for trained rows, which PEFT may write for both whenever they share a weight.
const ROWS_OF_BOTH: [(&str, &str, bool); 3] = [
    (ROWS, ROWS, false),
    ("base_layer.trainable_tokens_delta", ROWS, false),
    (ROWS_BESIDE_LORA, ROWS_BESIDE_LORA, false),
];

/// Removes what is equal for the output head and the embedding. `tied`: they are adapted as one.
fn drop_copies(embedding: &str, tied: bool, tensors: &mut BTreeMap<String, Tensor>) {
    for (of_head, of_embedding, transposed) in ROWS_OF_BOTH.iter().chain(TIED.iter().filter(|_| tied)) {
        let of_embedding = tensors.get(&format!("{embedding}.{of_embedding}"));
        let of_embedding = of_embedding.map(|t| if *transposed { t.tr() } else { t.shallow_clone() });
        let name = format!("{HEAD}.{of_head}");
        if same(tensors.get(&name), of_embedding.as_ref()) {
            tensors.remove(&name);
        }
    }
}

/// Returns the tensors that PEFT's file has for the output head, if the adapter is that of embedding and head as one.
pub(super) fn copies_for_head<'t>(
    spec: &AdapterSpec,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
) -> Vec<(String, Tensor)> {
    let copy = |(name, t): (&str, &Tensor)| {
        let module = table_of(name).filter(|module| !module.ends_with(HEAD))?;
        let rest = name.strip_prefix(module)?.strip_prefix('.')?;
        let (of_head, _, transposed) = TIED.iter().find(|(_, of_embedding, _)| *of_embedding == rest)?;
        Some((format!("{HEAD}.{of_head}"), if *transposed { t.tr() } else { t.shallow_clone() }))
    };
    if spec.asks_to_tie() { tensors.filter_map(copy).collect() } else { Vec::new() }
}

/// Returns true for the name of an embedding of tokens.
pub(in crate::adapters) fn is_embedding(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|last| EMBEDDINGS.contains(&last))
}

/// Returns the table that a tensor belongs to, by its module's name.
fn table_of(tensor: &str) -> Option<&str> {
    let found = EMBEDDINGS.iter().chain([&HEAD]).find_map(|table| {
        let end = tensor.find(&format!("{table}."))? + table.len();
        let begin = end - table.len();
        (begin == 0 || tensor.as_bytes()[begin - 1] == b'.').then_some(&tensor[..end])
    });
    found
}
