//! Defines error responses of the API.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error response, with the text that the page shows.
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) what: String,
    /// Says which refusal this is, for the page's script. The text may change, the code does not.
    pub(super) code: Option<&'static str>,
    /// Whether the same request may succeed later.
    pub(super) again: bool,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, what: impl Into<String>) -> Self {
        Self { status, what: what.into(), code: None, again: false }
    }

    pub(super) fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut said = json!({ "error": self.what, "again": self.again });
        if let Some(code) = self.code {
            said["code"] = code.into();
        }
        let mut response = (self.status, axum::Json(said)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
