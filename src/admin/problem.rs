//! What is answered where something is wrong (RFC 9457), and what is read from requests with that answer.

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Told;

/// What is wrong with a request.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// The status.
    #[serde(serialize_with = "number")]
    #[schemars(with = "u16")]
    status: StatusCode,
    /// What the status means.
    title: &'static str,
    /// What is wrong.
    detail: String,
    /// The mistakes of a policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    diagnostics: Vec<Told>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn number<S: serde::Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u16(status.as_u16())
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            title: status.canonical_reason().unwrap_or("error"),
            detail: detail.into(),
            diagnostics: Vec::new(),
        }
    }

    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// What is wrong.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// A policy that has mistakes.
    pub(super) fn of_policy(diagnostics: Vec<Told>) -> Self {
        Self {
            diagnostics,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the policy has mistakes")
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(&self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

pub(super) async fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "nothing is here; /v1/openapi.json says what is",
    )
}

pub(super) async fn not_allowed() -> Problem {
    let detail = "it has other methods; /v1/openapi.json says which";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// The query of a request.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = <Query<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        query
            .map(|Query(query)| Self(query))
            .map_err(|error: QueryRejection| Problem::bad(error.body_text()))
    }
}

/// A part of the path.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name =
            <axum::extract::Path<String> as FromRequestParts<S>>::from_request_parts(parts, state);
        name.await
            .map(|axum::extract::Path(name)| Self(name))
            .map_err(|error| Problem::bad(error.body_text()))
    }
}

/// A JSON body.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        // A form of another site cannot send it.
        if !kind.eq_ignore_ascii_case("application/json") {
            let detail = "the body is to be application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes
            .map_err(|error: BytesRejection| Problem::new(error.status(), error.body_text()))?;
        let value = serde_json::from_slice(&bytes);
        value
            .map(Self)
            .map_err(|error| Problem::bad(format!("the body cannot be read: {error}")))
    }
}
