//! Request bodies: bounded, with a deadline, in JSON, YAML or Kubernetes' protobuf.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::{protobuf, server::ApiRequest, status::ApiError};

/// Bodies up to this size are read, as by a real API server (`MaxRequestBodyBytes`).
const LIMIT: usize = 3 * 1024 * 1024;
/// How long a client may take to send a body.
const DEADLINE: Duration = Duration::from_secs(60);

/// A body, read and not yet understood.
pub(super) struct Payload {
    media_type: String,
    bytes: Bytes,
}

impl Payload {
    /// Reads the body. Errors: 413 above 3 MiB, 400 when it does not arrive whole and in time.
    pub async fn read(request: &mut ApiRequest) -> Result<Self, ApiError> {
        let media_type =
            request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let Some(body) = request.body_mut() else { return Ok(Self { media_type, bytes: Bytes::new() }) };
        let collected = tokio::time::timeout(DEADLINE, Limited::new(body, LIMIT).collect()).await;
        let collected = collected.map_err(|_| ApiError::bad_request("the request body did not arrive in time"))?;
        let bytes = collected.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                ApiError::too_large(LIMIT)
            } else {
                ApiError::bad_request(format!("the request body could not be read: {error}"))
            }
        })?;
        Ok(Self { media_type, bytes: bytes.to_bytes() })
    }

    /// The media type without parameters, in lower case.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The object in the body. Errors: 415 for other media types, 400 for what cannot be parsed.
    pub fn decode(&self) -> Result<Value, ApiError> {
        let malformed = |error: String| ApiError::bad_request(format!("the object provided is unrecognized: {error}"));
        match self.media_type.as_str() {
            protobuf::MEDIA_TYPE => protobuf::decode(&self.bytes),
            "application/yaml" | "application/apply-patch+yaml" => {
                let text = std::str::from_utf8(&self.bytes).map_err(|e| malformed(e.to_string()))?;
                serde_json::from_str(text)
                    .or_else(|_| serde_saphyr::from_str(text))
                    .map_err(|e| malformed(e.to_string()))
            }
            json if json == "application/json" || json.ends_with("+json") => {
                serde_json::from_slice(&self.bytes).map_err(|e| malformed(e.to_string()))
            }
            other => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, {} (got {other:?})",
                protobuf::MEDIA_TYPE
            ))),
        }
    }

    /// As [`Payload::decode`], with null for an empty body.
    pub fn decode_optional(&self) -> Result<Value, ApiError> {
        if self.bytes.is_empty() { Ok(Value::Null) } else { self.decode() }
    }
}
