//! Texts for people, compared with those in tests/snapshots.

/// Compares a text with tests/snapshots/NAME.snap. A new or changed text is written next to it as NAME.snap.new, and the
/// test fails; with INSTA_UPDATE=always the snapshot is replaced.
#[track_caller]
pub fn assert_snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
