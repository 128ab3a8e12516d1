//! Holds what all requests share.

use super::guard::AllowedHosts;
use super::people::PeopleByToken;
use crate::label::people::desk::Desk;
use crate::label::record::settings::ProjectSettings;
use crate::label::store::Store;

/// State shared by all requests.
pub(super) struct ServerState {
    pub(super) desk: Desk,
    pub(super) people: PeopleByToken,
    pub(super) hosts: AllowedHosts,
    /// A second connection to the project, so that the admin's overview never delays a vote.
    pub(super) store: Store,
    pub(super) settings: ProjectSettings,
}
